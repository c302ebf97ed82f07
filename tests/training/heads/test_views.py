"""Training views of heads, and the unseen ones that zero-shot heads never see."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.dataset import DataSet
from training.data.photographs import Archive, ImageFiles, NamedImage
from training.heads.frozen import named
from training.heads.views import (
    SHARES,
    TrainingView,
    build_views,
    most_views,
    photograph_parts,
    training_views,
    view_parts,
    wide_views,
)


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


def test_views_of_another_side_show_the_same(dataset: DataSet) -> None:
    small, large = training_views(dataset, 0), training_views(dataset, 0, side=224)
    for one, other in zip(small, large, strict=True):
        assert (one.kind, one.name, one.concepts) == (other.kind, other.name, other.concepts)
        assert other.pixels.shape == (224, 224, 3)


def test_drawing_continues_after_the_last_finished_share(dataset: DataSet, tmp_path: Path) -> None:
    part = view_parts()[0]
    drawn: list[int] = []

    def interrupted(dataset: DataSet, seed: int, share: int | None, side: int) -> Iterator[TrainingView]:
        if share == 9 and 9 not in drawn:
            drawn.append(9)
            raise KeyboardInterrupt
        drawn.append(share or 0)
        yield from training_views(dataset, seed, share, side)

    halting = replace(part, views=interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_views(dataset, halting, tmp_path, seed=0, progress=lambda _done, _loss: None)
    index = tmp_path / "views.shares.jsonl"
    index.write_text(index.read_text() + '[["picture", [], "cut o')  # a line cut off by the end of the process
    pixels, shown = build_views(dataset, halting, tmp_path, seed=0, progress=lambda _done, _loss: None)
    assert drawn == [*range(9), 9, *range(9, SHARES)]
    whole, expected = build_views(dataset, part, tmp_path / "whole", seed=0, progress=lambda _done, _loss: None)
    assert shown.names == expected.names
    assert np.array_equal(pixels, whole)


def test_fewer_shares_are_the_first_of_all(dataset: DataSet, tmp_path: Path) -> None:
    part = view_parts()[0]
    some, few = build_views(dataset, part, tmp_path, seed=0, progress=lambda _done, _loss: None, shares=5)
    whole, every = build_views(dataset, part, tmp_path, seed=0, progress=lambda _done, _loss: None)
    assert 0 < len(some) < len(whole)
    assert np.array_equal(some, whole[: len(some)])
    assert every.names[: len(few.names)] == few.names


def test_photographs_stay_as_they_are_and_validation_is_left_out(dataset: DataSet, tmp_path: Path) -> None:
    shades = {"1.png": 90, "2.png": 91, "3.png": 92}
    (tmp_path / "photographs").mkdir()
    for file, shade in shades.items():
        Image.fromarray(np.full((20, 40), shade, np.uint8)).save(tmp_path / "photographs" / file)
    files = ImageFiles(
        archive=Archive(tmp_path / "photographs.zip"),
        images=tuple(
            NamedImage(file=file, source="a", name="cup", is_validation=file == "2.png", is_unseen=False)
            for file in shades
        ),
    )
    part = photograph_parts(files, files, 32)[0]
    pixels, shown = build_views(dataset, part, tmp_path / "views", seed=0, progress=lambda _done, _loss: None)
    assert pixels[:, 16, 16, 0].tolist() == [90, 92]
    assert (pixels[:, 0] == 255).all()  # letterboxed
    assert shown.kinds == ("photograph", "photograph")
    assert named(shown, {"cup": ("1F964",)}, {"cup"}).concepts == (("1F964",), ("1F964",))
    assert named(shown, {}, {"cup"}).is_unseen.all()
    assert not named(shown, {}, ()).is_unseen.any()
