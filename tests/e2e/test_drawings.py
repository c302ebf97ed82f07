"""What people drew, kept out of all training, finds its kind over HTTP among the whole demo gallery."""

from pathlib import Path

import httpx
import pytest

from models.data.splits import Drawing, Splits, load_drawings, load_splits

pytestmark = pytest.mark.server
SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
CANVAS_SIDE = 256
FIRST = 5
LEAST_FOUND = 3


@pytest.fixture(scope="module")
def splits() -> Splits:
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data folder is not here")
    return load_splits(SHARED_DATA)


@pytest.fixture(scope="module")
def validation(splits: Splits) -> list[Drawing]:
    return [drawing for drawing in load_drawings(SHARED_DATA) if drawing.key_id in splits.validation_drawings]


@pytest.mark.parametrize("word", ["fish", "house", "star", "bicycle", "tree"])
def test_a_persons_drawing_finds_its_kind(
    client: httpx.Client, splits: Splits, validation: list[Drawing], word: str
) -> None:
    """At least three of the word's four validation drawings find it in the first five."""
    wanted = {code.lower() for code in splits.concepts[word]}
    answers = []
    for drawing in validation:
        if drawing.word == word:
            strokes = [[list(x), list(y)] for x, y in drawing.strokes]
            sketch = {"strokes": strokes, "width": CANVAS_SIDE, "height": CANVAS_SIDE}
            answers.append(client.post("/retrieve", json={"sketch": sketch, "k": FIRST}).json()["results"])
    assert len(answers) == 4
    found = [bool(wanted & {result["id"] for result in results}) for results in answers]
    assert sum(found) >= LEAST_FOUND, [[result["metadata"]["name"] for result in results] for results in answers]
