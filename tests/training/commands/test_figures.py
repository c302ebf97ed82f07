"""Contact sheets and the page of `vermouth eval all`."""

from pathlib import Path

import numpy as np

from training.commands.figures import contact_sheet
from training.commands.results import write_page
from training.commands.sheets import RIGHT, WRONG
from training.evaluation.retrieval import Protocol


def test_a_sheet_shows_a_query_a_word_and_its_answers_by_score() -> None:
    protocol = Protocol(
        name="toy",
        queries=np.full((3, 8, 8, 3), 255, np.uint8),
        wanted=[("a",), ("a",), ("b",)],
        groups=np.array([0, 0, 1]),
        group_names=["first", "second"],
        gallery=np.zeros((2, 8, 8, 3), np.uint8),
        classes=["a", "b"],
    )
    scores = np.array([[0.1, 0.9], [0, 0], [0.1, 0.9]], np.float32)
    sheet = np.asarray(contact_sheet(protocol, scores, {"a": "apple", "b": "bee"}))
    assert sheet.shape == (2 * 142 + 8, 3 * 112 + 8, 3)

    def has(colour: str, rows: slice, columns: slice) -> bool:
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        return bool((np.abs(sheet[rows, columns].astype(int) - wanted).max(axis=-1) < 30).any())

    first, second = slice(0, 146), slice(150, None)
    nearest = slice(120, 224)
    assert has(WRONG, first, nearest)
    assert has(RIGHT, second, nearest)


def test_the_page_shows_every_table_and_the_figures_that_are_there(tmp_path: Path) -> None:
    for name in ("retrieval", "fewshot", "segment", "robustness"):
        (tmp_path / f"{name}.md").write_text(f"table of {name}\n")
    (tmp_path / "robustness.png").write_bytes(b"")
    write_page(tmp_path)
    page = (tmp_path / "all.md").read_text()
    assert page.count("table of") == 4
    assert "](robustness.png)" in page
    assert "precision-recall" not in page
