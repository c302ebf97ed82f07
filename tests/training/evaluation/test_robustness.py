"""Every way of drawing keeps the drawing: its canonical form stays close to the strokes' own."""

import numpy as np
import pytest
from scipy import ndimage

from models.transforms import canonical_image, canonical_strokes
from training.data.dataset import DrawingRecord, Strokes
from training.evaluation.robustness import drawn, rasters, variants

KITE: Strokes = [[[0, 128, 255, 128, 0], [100, 0, 100, 255, 100]], [[128, 128], [0, 255]], [[0, 255], [100, 100]]]


@pytest.mark.parametrize("name", list(variants()))
def test_the_canonical_form_of_a_raster_is_near_that_of_its_strokes(name: str) -> None:
    record = DrawingRecord(word="kite", key_id="1", hexcodes=(), split="seen", validation=True, strokes=KITE)
    raster = rasters([record], variants()[name])[0]
    assert raster.dtype == np.uint8
    assert raster.shape == ((768, 768, 3) if name == "in a corner" else (256, 256, 3))
    found, wanted = canonical_image(raster)[..., 0] < 128, canonical_strokes(KITE)[..., 0] < 128
    for one, other in ((found, wanted), (wanted, found)):
        assert (ndimage.distance_transform_edt(~other)[one] > 4).mean() < 0.03


def test_lines_are_as_wide_as_asked() -> None:
    ink = drawn([[[0, 255], [128, 128]]], box=(0, 0, 256), width=6)
    assert ink[:, 128].sum() == pytest.approx(6, abs=0.5)


def test_the_same_drawing_is_drawn_the_same_every_time() -> None:
    record = DrawingRecord(word="kite", key_id="1", hexcodes=(), split="seen", validation=True, strokes=KITE)
    first, again = (rasters([record], variants()["photographed"])[0] for _ in range(2))
    assert np.array_equal(first, again)
