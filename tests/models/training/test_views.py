"""What heads are trained on, and which of it zero-shot heads must not see."""

from pathlib import Path

import numpy as np

from models.data.dataset import DataSet
from models.training.views import build_views, count_views, training_views


def test_the_evaluation_style_and_validation_drawings_never_appear(dataset: DataSet) -> None:
    views = list(training_views(dataset, 0))
    assert len(views) <= count_views(dataset)
    assert sum(view.kind == "drawing" for view in views) == 2 * 3  # four drawings, one of them for validation
    flat = np.asarray(dataset.pixels[5])
    assert not any(np.array_equal(view.pixels, flat) for view in views)


def test_everything_made_from_the_unseen_is_marked(dataset: DataSet) -> None:
    for view in training_views(dataset, 0):
        assert view.is_unseen == (view.name in ("owl", "hand", "an owl"))


def test_sketches_are_made_from_outlines_pictures_drawings_and_icons(dataset: DataSet) -> None:
    kinds = {view.kind for view in training_views(dataset, 0)}
    assert kinds == {"picture", "outline", "edges", "drawing", "icon"}


def test_a_thing_without_emoji_has_a_code_of_its_own(dataset: DataSet) -> None:
    concepts = {view.name: view.concepts for view in training_views(dataset, 0)}
    assert concepts["cat"] == ("1F431",)
    assert concepts["zigzag"] == ("word:zigzag",)
    assert concepts["bed"] == ("icon:bed",)


def test_views_are_the_same_by_seed_and_reopened_when_finished(dataset: DataSet, tmp_path: Path) -> None:
    first = build_views(dataset, tmp_path, 0, lambda _done, _loss: None)
    again = build_views(dataset, tmp_path, 1, lambda _done, _loss: None)  # opened: the seed no longer matters
    other = build_views(dataset, tmp_path / "other", 1, lambda _done, _loss: None)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.names == again.names == other.names
    assert not np.array_equal(first.pixels, other.pixels)
    assert first.pixels.shape[1:] == (128, 128, 3)
