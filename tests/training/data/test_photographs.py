"""Photographs and sketches are read from archives and folders, with the split that the data's rules ask for."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from training.data.dataset import DataSet, Splits, tokens, unseen_names
from training.data.photographs import (
    BACKGROUNDS,
    Archive,
    concepts_by_thing,
    concepts_of,
    imagenet_names,
    load_photographs,
    load_sketches,
    thing,
)

from .conftest import SHARED_DATA

# The rules' own list (shared/data/README.md), the last eight to be safe.
UNSEEN_SKETCHES = (
    "barn, bear (animal), book, brain, bridge, bush, butterfly, calculator, canoe, car (sedan), cloud, cow, crocodile, "
    "donut, ear, fire hydrant, flashlight, flying saucer, fork, giraffe, hand, hat, helicopter, house, key, keyboard, "
    "knife, lighter, lion, lobster, mouth, mug, owl, rabbit, rollerblades, scorpion, speed-boat, spider, toothbrush, "
    "traffic light, wheel, wrist-watch, beer-mug, teacup, race car, suv, tire, cigarette, computer-mouse, santa claus"
).split(", ")


def image(shade: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((6, 4), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "tu-berlin.zip", "w") as archive:
        for name in ("barn", "cup"):
            for number in range(1, 21):
                archive.writestr(f"{name}/{number}.png", image(number))
    with zipfile.ZipFile(tmp_path / "photographs.zip", "w") as archive:
        archive.writestr("a/cup/1.png", image(7))
    rows = [
        {"file": "a/cup/1.png", "source": "a", "name": "cup", "split": "train"},
        {"file": "a/barn/1.png", "source": "a", "name": "old barn", "split": "validation"},
        {"file": "b/1.png", "source": BACKGROUNDS, "name": "background", "split": "train"},
    ]
    with gzip.open(tmp_path / "photographs.jsonl.gz", "wt") as lines:
        lines.write("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_photographs_have_the_splits_of_their_index_and_of_their_names(folder: Path) -> None:
    found = load_photographs(folder, [tokens("barn")]).images
    assert [(i.name, i.is_validation, i.is_unseen) for i in found] == [
        ("cup", False, False),
        ("old barn", True, True),
        ("", False, False),  # a background shows nothing
    ]


def test_the_last_sixteen_sketches_of_a_class_are_for_validation(folder: Path) -> None:
    cups = [image for image in load_sketches(folder).images if image.name == "cup"]
    assert [int(Path(i.file).stem) for i in cups] == list(range(1, 21))  # in numerical order
    assert [i.is_validation for i in cups] == [False] * 4 + [True] * 16


def test_an_unpacked_folder_reads_as_the_archive(folder: Path) -> None:
    before = load_sketches(folder)
    with zipfile.ZipFile(folder / "tu-berlin.zip") as archive:
        archive.extractall(folder / "tu-berlin")
    (folder / "tu-berlin.zip").unlink()
    after = load_sketches(folder)
    assert after.images == before.images
    file = after.images[3].file
    assert np.array_equal(after.archive.pixels(file), before.archive.pixels(file))
    assert after.archive.pixels(file).shape == (6, 4, 3)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no .*photographs\.jsonl\.gz"):
        load_photographs(tmp_path)
    with pytest.raises(DataError, match=r"no .*tu-berlin\.zip"):
        load_sketches(tmp_path)
    with pytest.raises(DataError, match="name the data's folder"):
        Archive(tmp_path / "other.zip")


@pytest.mark.parametrize(
    ("left", "right"),
    [("cell phone", "cellphone"), ("head-phones", "headphone"), ("bear (animal)", "bear"), ("shoes", "shoe")],
)
def test_one_thing_has_one_name_in_all_sources(left: str, right: str) -> None:
    assert thing(left) == thing(right)


def test_concepts_follow_from_emoji_and_words(dataset: DataSet) -> None:
    known = concepts_by_thing(dataset)
    assert concepts_of("Cats", known) == ("1F431",)
    assert concepts_of("zigzag", known) == ("word:zigzag",)
    assert concepts_of("golden retriever", known) == ("thing:goldenretriever",)
    assert concepts_of("", known) == ()


def test_classes_of_imagenet_are_in_the_order_of_the_classifier() -> None:
    names = imagenet_names()
    assert (len(names), names[0], names[207]) == (1000, "tench", "Golden Retriever")


def test_the_rules_unseen_sketches_are_unseen_and_no_others() -> None:
    if not (SHARED_DATA / "tu-berlin.zip").is_file():
        pytest.skip("the shared data folder is not here")
    found = load_sketches(SHARED_DATA).images
    assert len(found) == 20_000
    assert {image.name for image in found if image.is_unseen} == set(UNSEEN_SKETCHES)


def test_no_photograph_named_like_an_unseen_word_is_seen(shared_splits: Splits) -> None:
    found = load_photographs(SHARED_DATA, unseen_names(shared_splits, [])).images
    assert len(found) == 26_250
    seen = {thing(image.name) for image in found if not image.is_unseen}
    assert not seen & {thing(word) for word in shared_splits.unseen_words}
    assert {"helicopter", "watch", "american lobster"} <= {image.name for image in found if image.is_unseen}
    assert {"cup", "airplane", "golden retriever"} <= {image.name for image in found if not image.is_unseen}
