"""The data set on disk, built from a small tree with the packages' layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from training.data.build import Packages, build, fit, on_white, render_file
from training.data.dataset import DEFAULT_FOLDER, DataSet, Splits, load_dataset, named_like, unseen_names

from .conftest import OWL


@pytest.fixture
def built(packages: Packages, drawings_dir: Path, tmp_path: Path) -> DataSet:
    build(packages, drawings_dir, tmp_path / "out", lambda _done, _total: None)
    return load_dataset(tmp_path / "out")


def test_every_row_has_its_image_and_every_class_its_styles(built: DataSet) -> None:
    assert len(built.pixels) == len(built.alpha) == len(built.images)
    assert [r.row for r in built.images] == list(range(len(built.images)))
    styles = {(r.source, r.kind) for r in built.images if r.hexcode == OWL}
    assert styles == {
        ("openmoji", "picture"),
        ("openmoji", "outline"),
        ("noto", "picture"),
        ("twemoji", "picture"),
        ("fluent", "picture"),
        ("fluent-contrast", "outline"),
        ("fluent-flat", "picture"),
    }
    assert all(0 < np.asarray(built.alpha[r.row]).mean() < 255 for r in built.images)


def test_splits_reach_every_record(built: DataSet) -> None:
    by_name = {(r.source, r.name): r.split for r in built.images}
    assert by_name["openmoji", "owl"] == "unseen"
    assert by_name["openmoji", "cat"] == "seen"
    assert by_name["fluent-flat", "cat"] == by_name["fluent-flat", "owl"] == "evaluation"
    assert by_name["phosphor-bold", "bed"] == "none"
    assert by_name["phosphor-bold", "hand palm"] == by_name["phosphor-bold", "owls"] == "unseen"
    assert [(d.word, d.split, d.validation) for d in built.drawings] == [
        ("cat", "seen", False),
        ("owl", "unseen", False),
        ("cat", "seen", True),
    ]


def test_copies_blanks_and_damaged_clip_art_are_left_out_and_a_copy_s_unseen_name_counts(built: DataSet) -> None:
    clipart = built.rows(lambda r: r.source == "openclipart")
    assert [(r.name, r.split) for r in clipart] == [("a cat", "unseen")]


def test_building_twice_gives_the_same_bytes(
    built: DataSet, packages: Packages, drawings_dir: Path, tmp_path: Path
) -> None:
    build(packages, drawings_dir, tmp_path / "again", lambda _done, _total: None)
    for name in ("pictures.npy", "alpha.npy", "pictures.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert len(built.pixels)


def test_a_class_without_its_emoji_and_an_unfinished_data_set_are_errors(
    packages: Packages, drawings_dir: Path, tmp_path: Path
) -> None:
    (packages.npm / "openmoji/data/openmoji.json").write_text("[]")
    with pytest.raises(DataError, match="lacks 3 of the 3"):
        build(packages, drawings_dir, tmp_path / "out", lambda _done, _total: None)
    with pytest.raises(DataError, match="no finished data set"):
        load_dataset(tmp_path / "out")


def test_the_real_data_set_leaks_nothing(shared_splits: Splits) -> None:
    if not (DEFAULT_FOLDER.expanduser() / "manifest.json").is_file():
        pytest.skip("the data set is not built (vermouth data build)")
    real = load_dataset(DEFAULT_FOLDER)
    unseen = unseen_names(
        shared_splits, {r.name for r in real.images if r.hexcode is not None and r.hexcode in shared_splits.unseen}
    )
    for record in real.images:
        if record.source == "fluent-flat":
            assert record.split == "evaluation"
        elif record.hexcode is not None:
            assert record.split == shared_splits.of_class(record.hexcode)
        else:
            assert record.split == "unseen" or not named_like(record.name, unseen)
    for drawing in real.drawings:
        assert drawing.validation == (drawing.key_id in shared_splits.validation_drawings)
        assert drawing.split == shared_splits.of_word(drawing.word)


def test_a_wide_png_touches_both_sides_and_is_centred_on_transparency(tmp_path: Path) -> None:
    Image.fromarray(np.full((10, 40, 3), 7, dtype=np.uint8)).save(tmp_path / "wide.png")
    rgba = render_file(tmp_path / "wide.png", 64)
    assert rgba.shape == (64, 64, 4)
    assert rgba[..., 3].any(axis=0).all()
    rows = np.flatnonzero(rgba[..., 3].any(axis=1))
    assert (rows[0], rows[-1]) == (24, 39)


def test_svg_is_rendered_with_alpha(tmp_path: Path) -> None:
    path = tmp_path / "disc.svg"
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><circle cx="1" cy="1" r="1"/></svg>')
    rgba = render_file(path, 32)
    assert rgba[0, 0, 3] == 0
    assert rgba[16, 16].tolist() == [0, 0, 0, 255]


def test_colours_under_full_transparency_do_not_bleed() -> None:
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[...] = (255, 0, 0, 0)
    rgba[2:6, 2:6] = (0, 0, 255, 255)
    scaled = fit(Image.fromarray(rgba), 24)
    assert scaled[scaled[..., 3] > 8][:, 0].max() < 32


def test_compositing_is_exact_at_both_ends_and_rounds_between() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    assert on_white(rgba).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]
