"""Blending of views into a label map."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.heads import stitching
from models.heads.stitching import Stitched, ViewProbabilities, stitch
from models.transforms import plan_views, whole_view


def halves(height: int, width: int) -> ViewProbabilities:
    """Left half class 1, right half class 2, with certainty 0.8."""
    values = np.full((3, 32, 32), 0.1, np.float32)
    values[1, :, :16], values[2, :, 16:] = 0.8, 0.8
    return ViewProbabilities(box=whole_view(height, width), values=values)


@pytest.mark.parametrize("max_bytes", [1, 10_000, 1 << 28], ids=["row-by-row", "strips", "at-once"])
def test_labels_do_not_depend_on_the_strips(max_bytes: int) -> None:
    stitched = stitch([halves(90, 120)], height=90, width=120, has_background=True, threshold=0.0, max_bytes=max_bytes)
    assert (stitched.labels[:, :60] == 1).all()
    assert (stitched.labels[:, 60:] == 2).all()
    assert stitched.scores == pytest.approx([0.8, 0.8], abs=0.05)


@pytest.mark.parametrize(("has_background", "filler"), [(True, 0), (False, 255)], ids=["on", "off"])
def test_uncertain_pixels_become_background_or_unlabelled(has_background: bool, filler: int) -> None:
    stitched = stitch(
        [halves(64, 64)], height=64, width=64, has_background=has_background, threshold=0.95, max_bytes=1 << 20
    )
    assert (stitched.labels == filler).all()
    assert stitched.scores.tolist() == [0, 0]


def test_views_of_one_truth_agree_with_it() -> None:
    height, width = 300, 420
    boxes = plan_views(height, width, 128)
    assert len(boxes) > 4

    def truth(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return (x > 200).astype(float)

    views = []
    for box in boxes:
        centres = box.left + (np.arange(32) + 0.5) * box.side / 32
        right = np.broadcast_to(truth(centres), (32, 32))
        values = np.stack([np.zeros((32, 32)), 1 - right, right]).astype(np.float32)
        views.append(ViewProbabilities(box=box, values=values))
    stitched = stitch(views, height=height, width=width, has_background=True, threshold=0.0, max_bytes=1 << 24)
    expected = np.broadcast_to(np.where(np.arange(width) > 200, 2, 1), (height, width))
    assert (stitched.labels == expected).mean() > 0.97


def test_an_input_of_too_many_cells_is_worked_out_on_a_coarser_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stitching, "MAX_CELLS", 3 * 50 * 40)
    stitched = stitch([halves(500, 400)], height=500, width=400, has_background=True, threshold=0.0, max_bytes=1 << 20)
    assert stitched.labels.shape == (500, 400)
    assert (stitched.labels[:, :190] == 1).all()
    assert (stitched.labels[:, 210:] == 2).all()


def margin_stitched(
    monkeypatch: pytest.MonkeyPatch,
    views: list[ViewProbabilities],
    margin: float,
    *,
    height: int,
    width: int,
    has_background: bool,
) -> Stitched:
    """Stitched with another margin; an infinite one leaves nothing out."""
    with monkeypatch.context() as patch:
        patch.setattr(stitching, "SURE_MARGIN", margin)
        return stitch(
            views, height=height, width=width, has_background=has_background, threshold=0.4, max_bytes=1 << 20
        )


@pytest.mark.parametrize("max_tiles", [0, 16], ids=["whole", "tiles"])
@pytest.mark.parametrize("has_background", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("max_cells", [stitching.MAX_CELLS, 50_000], ids=["fine", "coarse"])
def test_leaving_out_what_is_surely_background_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, max_tiles: int, has_background: bool, max_cells: int
) -> None:
    monkeypatch.setattr(stitching, "MAX_CELLS", max_cells)
    generator = np.random.default_rng(max_tiles)
    for number in range(8):
        height, width = (int(side) for side in generator.integers(100, 400, 2))
        views = []
        for box in plan_views(height, width, 128, max_tiles=max_tiles):
            logits = generator.normal(0, 1.5, (4, 8, 8)).astype(np.float32).repeat(4, 1).repeat(4, 2)
            logits[0] += number / 2
            values = np.exp(logits)
            views.append(ViewProbabilities(box=box, values=values / values.sum(axis=0)))

        found, everywhere = (
            margin_stitched(monkeypatch, views, margin, height=height, width=width, has_background=has_background)
            for margin in (stitching.SURE_MARGIN, np.inf)
        )
        assert np.array_equal(found.labels, everywhere.labels)
        assert found.scores.tobytes() == everywhere.scores.tobytes()


def test_background_alone_is_not_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stitching, "blend", None)
    values = np.stack([np.full((32, 32), 0.8), np.full((32, 32), 0.2)]).astype(np.float32)
    view = ViewProbabilities(box=whole_view(90, 120), values=values)
    stitched = stitch([view], height=90, width=120, has_background=True, threshold=0.0, max_bytes=1 << 20)
    assert not stitched.labels.any()
    assert stitched.scores.tolist() == [0]
