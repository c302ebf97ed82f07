"""What is traced, and steps of tracing that are written out for speed: the same as the plain ones."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from models.sketch import linework
from models.transforms import canonical_sketch
from tests.models.sketch.drawings import STYLES
from training.data.dataset import load_drawings, load_splits
from training.data.photographs import load_photographs

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"
PHOTOGRAPHS, DRAWINGS = 500, 200
SLOW = {"large and thin", "pencil by a phone"}  # to draw
MOST_PHOTOGRAPHS, LEAST_DRAWINGS = 0.025, 0.95


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data folder is not here")
    return SHARED_DATA


def test_photographs_are_hardly_ever_traced(shared_data: Path) -> None:
    """Of those that are, most are drawings and silhouettes on white."""
    files = load_photographs(shared_data)
    training = [image for image in files.images if not image.is_validation]
    chosen = training[:: len(training) // PHOTOGRAPHS]
    traced = [canonical_sketch(files.archive.pixels(image.file)) is not None for image in chosen]
    assert np.mean(traced) <= MOST_PHOTOGRAPHS


def test_drawings_of_every_style_are_traced(shared_data: Path) -> None:
    drawings = list(load_drawings(shared_data, load_splits(shared_data)))
    chosen = drawings[:: len(drawings) // DRAWINGS]
    names = [name for turn in range(5) for name in STYLES if turn == 0 or name not in SLOW] * DRAWINGS
    traced = [
        canonical_sketch(STYLES[name](drawing.strokes)) is not None
        for drawing, name in zip(chosen, names, strict=False)
    ]
    assert np.mean(traced) >= LEAST_DRAWINGS


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (200, 1), (64, 64), (97, 130), (333, 85)])
@pytest.mark.parametrize("side", [16, 20, 64])
def test_blocks_keep_their_extremes(height: int, width: int, side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    factor = -(-max(height, width) // side)
    low, high = linework._block_extremes(pixels, side)
    for row in range(low.shape[0]):
        for column in range(low.shape[1]):
            block = pixels[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            assert (low[row, column] == block.min(axis=(0, 1))).all()
            assert (high[row, column] == block.max(axis=(0, 1))).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 50)])
def test_foreground_grows_by_its_four_neighbours(shape: tuple[int, int]) -> None:
    foreground = np.random.default_rng(0).random(shape) < 0.1
    assert np.array_equal(linework._grown(foreground), ndimage.binary_dilation(foreground))


def test_specks_go_and_the_rest_stays() -> None:
    foreground = np.random.default_rng(0).random((80, 90)) < 0.2
    labels, count = ndimage.label(foreground, structure=np.ones((3, 3)))
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    large = 1 + np.flatnonzero(area >= min(6, 0.05 * area.max()))
    assert np.array_equal(linework._without_specks(foreground), np.isin(labels, large))
    assert 0 < len(large) < count
