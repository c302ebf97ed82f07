"""The protocols on photographs, on vectors and masks whose figures are known."""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from training.data.clothing import ClothingMasks, load_clothing
from training.data.dataset import DrawingRecord
from training.data.photographs import BACKGROUNDS, Archive, ImageFiles, NamedImage, thing
from training.evaluation import clothing
from training.evaluation.photographs import (
    Gallery,
    gallery_of,
    naming,
    shot_row,
    sketch_queries,
    sketch_rows,
    text_rows,
)

NAMES = ("cat", "dog", "cup")


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


def files(tmp_path: Path, rows: list[tuple[str, str, bool, bool]]) -> ImageFiles:
    """Rows of source, name, whether for validation and whether unseen."""
    with zipfile.ZipFile(tmp_path / "photographs.zip", "w") as archive:
        for number in range(len(rows)):
            archive.writestr(f"{number}.png", png(number))
    images = (
        NamedImage(file=f"{number}.png", source=source, name=name, is_validation=held_out, is_unseen=unseen)
        for number, (source, name, held_out, unseen) in enumerate(rows)
    )
    return ImageFiles(archive=Archive(tmp_path / "photographs.zip"), images=tuple(images))


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    rows = [(source, name, True, name == "cup") for source in ("a", "b") for name in NAMES for _ in range(10)]
    return gallery_of(files(tmp_path, [*rows, ("a", "cat", False, False), (BACKGROUNDS, "", True, False)]))


def embed(names: Sequence[str]) -> torch.Tensor:
    return torch.eye(len(NAMES))[[NAMES.index(name) for name in names]]


def right(gallery: Gallery) -> NDArray[np.float32]:
    return embed(gallery.things.tolist()).numpy()


def test_the_gallery_is_all_validation_photographs_with_a_name(gallery: Gallery) -> None:
    assert len(gallery.images) == 60
    assert gallery.pixels(16).shape == (60, 16, 16, 3)


def test_names_find_their_photographs_by_source_and_together(gallery: Gallery) -> None:
    rows = text_rows(gallery, right(gallery), embed)
    assert [(row["source"], row["queries"]) for row in rows] == [("all", 3), ("a", 3), ("b", 3)]
    assert all(row["map_all"] == row["p_1"] == row["r_10"] == 1 for row in rows)
    swapped = right(gallery)[:, [1, 0, 2]]  # dogs for cats
    row = text_rows(gallery, swapped, embed)[0]
    assert row["p_1"] == pytest.approx(1 / 3)
    assert naming(gallery, swapped, embed) == pytest.approx(1 / 3)
    assert naming(gallery, right(gallery), embed) == 1


def test_sketches_of_shown_things_find_photographs_seen_and_unseen_names_apart(
    gallery: Gallery, tmp_path: Path
) -> None:
    (tmp_path / "sketches").mkdir()
    drawn = files(
        tmp_path / "sketches",
        [("t", "cat", True, False), ("t", "cup", True, True), ("t", "dog", False, False), ("t", "zebra", True, False)],
    )
    drawing = DrawingRecord(
        word="dogs", key_id="1", hexcodes=(), split="seen", validation=True, strokes=[[[0, 9], [0, 9]]]
    )
    sketches, drawings = sketch_queries(gallery, drawn, [drawing])
    assert sketches.things.tolist() == ["cat", "cup"]
    assert drawings.things.tolist() == [thing("dog")]
    assert sketches.draw(16).shape == (2, 16, 16, 3)
    assert drawings.draw(16).shape == (1, 16, 16, 3)
    seen, unseen = sketch_rows(gallery, sketches, embed(["cat", "dog"]).numpy(), right(gallery))
    assert (seen["names"], seen["queries"], seen["map_all"]) == ("seen", 1, 1)
    assert (unseen["names"], unseen["queries"], unseen["p_1"]) == ("unseen", 1, 0)  # a dog for a cup


def test_episodes_are_over_the_names_of_every_source(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.evaluation.photographs.EPISODES", ((2, 1),))
    by_source = np.array([[image.source == "a", image.source == "b"] for image in gallery.images], np.float32)
    row = shot_row(gallery, [right(gallery), by_source], episodes=20)
    assert row["2w1s"] == 1
    assert shot_row(gallery, [np.ones((60, 2), np.float32)], episodes=20)["2w1s"] == pytest.approx(0.5)


@pytest.fixture
def masks(tmp_path: Path) -> ClothingMasks:
    with zipfile.ZipFile(tmp_path / "clothing-masks.zip", "w") as archive:
        archive.writestr("labels.json", json.dumps(["null", "hat", "shoes"]))
        for number in range(1, 13):
            for suffix in ("webp", "png"):
                archive.writestr(f"{number:04}.{suffix}", png(1))
    return load_clothing(tmp_path, is_validation=True)


def test_every_sixth_street_photograph_is_for_validation(masks: ClothingMasks) -> None:
    assert masks.numbers == ("0006", "0012")
    assert masks.names == ("hat", "shoes")


def test_masks_count_over_the_names_that_occur(masks: ClothingMasks) -> None:
    def segment(pixels: NDArray[np.uint8], _names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        labels = np.ones(pixels.shape[:2], np.uint8)
        labels[:2], labels[2:4] = 2, 0  # a quarter shoes, a quarter background; all of it is a hat
        return labels, np.ones(labels.shape)

    assert clothing.clothing_iou(masks, segment)["miou"] == pytest.approx(0.5)


def test_the_largest_area_counts_and_nothing_named_is_wrong(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clothing, "_NAMES", 2)
    answers = iter(["right", "none"] * 3)

    def segment(pixels: NDArray[np.uint8], names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        name = gallery.images[int(pixels[0, 0, 0])].name
        labels = np.full(pixels.shape[:2], list(names).index(name) + 1 if next(answers) == "right" else 0, np.uint8)
        return labels, np.ones(labels.shape)

    assert clothing.largest_area(gallery, segment, 6) == 0.5
