"""Steps of tracing that are written out for speed: the same as the plain ones."""

import numpy as np
import pytest
from scipy import ndimage

from models.sketch import linework


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
