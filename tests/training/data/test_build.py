"""The data set on disk, built from a small tree with the packages' layout."""

from pathlib import Path

import numpy as np
import pytest

from models.errors import DataError
from training.data.build import build
from training.data.dataset import DEFAULT_FOLDER, DataSet, load_dataset
from training.data.packages import Packages
from training.data.splits import Splits, named_like, unseen_names

from .conftest import OWL


@pytest.fixture
def built(packages: Packages, drawings_dir: Path, tmp_path: Path) -> DataSet:
    build(packages, drawings_dir, tmp_path / "out", lambda _done, _total: None)
    return load_dataset(tmp_path / "out")


def test_every_row_has_its_picture_and_every_class_its_styles(built: DataSet) -> None:
    assert len(built.pixels) == len(built.alpha) == len(built.pictures)
    assert [r.row for r in built.pictures] == list(range(len(built.pictures)))
    styles = {(r.source, r.kind) for r in built.pictures if r.hexcode == OWL}
    assert styles == {
        ("openmoji", "picture"),
        ("openmoji", "outline"),
        ("noto", "picture"),
        ("twemoji", "picture"),
        ("fluent", "picture"),
        ("fluent-contrast", "outline"),
        ("fluent-flat", "picture"),
    }
    assert all(0 < np.asarray(built.alpha[r.row]).mean() < 255 for r in built.pictures)


def test_splits_reach_every_record(built: DataSet) -> None:
    by_name = {(r.source, r.name): r.split for r in built.pictures}
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
        shared_splits, {r.name for r in real.pictures if r.hexcode is not None and r.hexcode in shared_splits.unseen}
    )
    for record in real.pictures:
        if record.source == "fluent-flat":
            assert record.split == "evaluation"
        elif record.hexcode is not None:
            assert record.split == shared_splits.of_class(record.hexcode)
        else:
            assert record.split == "unseen" or not named_like(record.name, unseen)
    for drawing in real.drawings:
        assert drawing.validation == (drawing.key_id in shared_splits.validation_drawings)
        assert drawing.split == shared_splits.of_word(drawing.word)
