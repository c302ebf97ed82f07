"""What people drew, held out of all training, finds its kind over HTTP among the whole demo gallery."""

from pathlib import Path

import httpx
import pytest

from training.data.dataset import DrawingRecord, Splits, load_drawings, load_splits

pytestmark = pytest.mark.server
SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
CANVAS_SIDE = 256
FIRST = 5
WORDS = ("fish", "house", "star", "bicycle", "tree")
LEAST_OF_A_WORD = 2
LEAST_OF_ALL = 15


@pytest.fixture(scope="module")
def splits() -> Splits:
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data folder is not here")
    return load_splits(SHARED_DATA)


@pytest.fixture(scope="module")
def validation(splits: Splits) -> list[DrawingRecord]:
    return [drawing for drawing in load_drawings(SHARED_DATA, splits) if drawing.validation]


def test_peoples_drawings_find_their_kind(
    client: httpx.Client, splits: Splits, validation: list[DrawingRecord]
) -> None:
    """Of each word's four validation drawings two find it in the first five, and of all twenty fifteen."""
    found: dict[str, list[bool]] = {word: [] for word in WORDS}
    for drawing in validation:
        if drawing.word in found:
            sketch = {"strokes": drawing.strokes, "width": CANVAS_SIDE, "height": CANVAS_SIDE}
            results = client.post("/retrieve", json={"sketch": sketch, "k": FIRST}).json()["results"]
            wanted = {code.lower() for code in splits.concepts[drawing.word]}
            found[drawing.word].append(bool(wanted & {result["id"] for result in results}))
    assert {len(flags) for flags in found.values()} == {4}
    assert min(map(sum, found.values())) >= LEAST_OF_A_WORD, found
    assert sum(map(sum, found.values())) >= LEAST_OF_ALL, found
