"""Figures, tables over seeds and the page of `vermouth eval all`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.commands import figures
from training.commands.eval import write_page
from training.commands.figures import contact_sheet
from training.commands.images import RIGHT, WRONG
from training.commands.tables import over_seeds
from training.evaluation.metrics import calibration
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


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def test_curves_have_a_panel_a_protocol(tmp_path: Path) -> None:
    curve = np.linspace(1, 0, 101)
    for count in (1, 3):
        panels = {f"p{number}": {"a": curve, "b": curve / 2} for number in range(count)}
        figures.precision_recall_plot(panels, tmp_path / f"{count}.png")
    assert _size(tmp_path / "3.png")[0] == pytest.approx(3 * _size(tmp_path / "1.png")[0], abs=5)


@pytest.mark.parametrize("count", [5, 60, 255])
def test_bars_fit_whatever_the_number_of_words(count: int, tmp_path: Path) -> None:
    values = np.linspace(0, 1, count)
    figures.word_bars([f"word {n}" for n in range(count)], values, title="R@10", file=tmp_path / "bars.png")
    assert _size(tmp_path / "bars.png") == (990, 360)


def test_confusions_reliability_and_ways_are_drawn(tmp_path: Path) -> None:
    figures.confusion_plot(np.eye(3), ["a", "b", "c"], title="t", file=tmp_path / "confusion.png")
    found = calibration(np.array([0.2, 0.9, 0.95]), np.array([False, True, True]))
    figures.reliability_plot({"seen": found, "unseen": found}, tmp_path / "reliability.png")
    figures.ways_bars(["plain", "small"], [0.8, 0.7], least=0.75, title="R@10", file=tmp_path / "ways.png")
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_tables_merge_line_by_line() -> None:
    tables = [[{"model": "a", "queries": 7, "map": value}] for value in (0.1, 0.3)]
    (row,) = over_seeds(tables)
    assert list(row) == ["model", "queries", "map", "map ±", "seeds"]
    assert (row["model"], row["queries"], row["map"], row["seeds"]) == ("a", 7, pytest.approx(0.2), 2)


def test_a_single_table_stays() -> None:
    assert over_seeds([[{"model": "a", "map": 0.1}]]) == [{"model": "a", "map": 0.1}]
