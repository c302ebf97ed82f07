"""Training views of heads, and the unseen ones that zero-shot heads never see."""

from pathlib import Path

import numpy as np

from training.data.dataset import DataSet
from training.heads.views import SHARES, build_views, most_views, training_views, view_parts, wide_views


def test_the_evaluation_style_and_validation_drawings_never_appear(dataset: DataSet) -> None:
    views = list(training_views(dataset, 0))
    assert len(views) <= most_views(dataset)
    assert sum(view.kind == "drawing" for view in views) == 2 * 3  # four drawings, one of them for validation
    flat = np.asarray(dataset.pixels[5])
    assert not any(np.array_equal(view.pixels, flat) for view in views)


def test_everything_made_from_the_unseen_is_marked(dataset: DataSet) -> None:
    for view in training_views(dataset, 0):
        assert view.is_unseen == (view.name in ("owl", "hand", "an owl"))


def test_sketches_are_made_from_outlines_images_drawings_and_icons(dataset: DataSet) -> None:
    kinds = {view.kind for view in training_views(dataset, 0)}
    assert kinds == {"picture", "outline", "edges", "drawing", "icon"}


def test_a_thing_without_emoji_has_a_code_of_its_own(dataset: DataSet) -> None:
    concepts = {view.name: view.concepts for view in training_views(dataset, 0)}
    assert concepts["cat"] == ("1F431",)
    assert concepts["zigzag"] == ("word:zigzag",)
    assert concepts["bed"] == ("icon:bed",)


def test_views_are_the_same_by_seed_and_reopened_when_finished(dataset: DataSet, tmp_path: Path) -> None:
    part = view_parts()[0]
    pixels, first = build_views(dataset, part, tmp_path, seed=0, progress=lambda _done, _loss: None)
    # The seed no longer matters.
    reopened, again = build_views(dataset, part, tmp_path, seed=1, progress=lambda _done, _loss: None)
    others, other = build_views(dataset, part, tmp_path / "other", seed=1, progress=lambda _done, _loss: None)
    assert np.array_equal(pixels, reopened)
    assert first.names == again.names == other.names
    assert not np.array_equal(pixels, others)
    assert pixels.shape[1:] == (128, 128, 3)


def test_clip_art_is_a_thing_of_its_own_with_its_edges_and_without_a_name(dataset: DataSet) -> None:
    views = list(wide_views(dataset, 0))
    assert len(views) <= most_views(dataset)
    clipart = [view for view in views if view.concepts[0].startswith("clip:")]
    assert {view.kind for view in clipart} == {"picture", "edges"}
    assert {view.name for view in clipart} == {""}
    assert any(view.is_unseen for view in views)
    assert all(view.is_unseen == (view.name in ("owl", "hand", "an owl")) for view in views if view.name)


def test_shares_are_all_views_and_processes_make_the_same(dataset: DataSet, tmp_path: Path) -> None:
    whole = {view.pixels.tobytes() for view in training_views(dataset, 0)}
    assert {view.pixels.tobytes() for share in range(SHARES) for view in training_views(dataset, 0, share)} == whole
    part = view_parts()[1]
    alone, first = build_views(dataset, part, tmp_path / "one", seed=0, progress=lambda _done, _loss: None)
    together, second = build_views(
        dataset, part, tmp_path / "two", seed=0, progress=lambda _done, _loss: None, workers=2
    )
    assert np.array_equal(alone, together)
    assert first.names == second.names


def test_another_round_shows_the_same_things_in_other_ways(dataset: DataSet, tmp_path: Path) -> None:
    first, second = view_parts(rounds=2)[0], view_parts(rounds=2)[2]
    assert (first.name, second.name) == ("views", "views-1")
    pixels, shown = build_views(dataset, first, tmp_path, seed=0, progress=lambda _done, _loss: None)
    others, again = build_views(dataset, second, tmp_path, seed=0, progress=lambda _done, _loss: None)
    assert shown.names == again.names
    assert not np.array_equal(pixels, others)
