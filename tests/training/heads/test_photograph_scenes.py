"""Street photographs as scenes: labels by cell, names present and absent, and photographs as backgrounds of others."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from training.data.clothing import ClothingMasks, load_clothing
from training.data.dataset import tokens
from training.data.photographs import BACKGROUNDS, Archive, ImageFiles, NamedImage, photographed_background
from training.heads.photograph_scenes import clothing_views, named_views
from training.heads.scene_views import UNKNOWN

HEIGHT, WIDTH = 96, 64


def png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def masks(tmp_path: Path) -> ClothingMasks:
    """One photograph: a hat in the upper third, shoes in the lower, and a speck of a tie between."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:32], labels[64:], labels[48, 30:32] = 1, 3, 2
    with zipfile.ZipFile(tmp_path / "clothing-masks.zip", "w") as archive:
        archive.writestr("labels.json", json.dumps(["null", "hat", "tie", "shoes", "dress", "coat"]))
        archive.writestr("0001.png", png(labels))
        archive.writestr("0001.webp", png(np.full((HEIGHT, WIDTH, 3), 40, np.uint8)))
    return load_clothing(tmp_path, is_validation=False)


def test_islands_smaller_than_a_cell_are_background(masks: ClothingMasks) -> None:
    assert 2 in masks.labels("0001")
    assert set(np.unique(masks.cleaned("0001"))) == {0, 1, 3}


def test_cells_carry_the_numbers_of_the_names_that_are_shown(masks: ClothingMasks) -> None:
    pixels, shown = clothing_views(masks, 224)
    assert pixels.shape == (4, 224, 224, 3)  # the whole photograph and three tiles, which it fits into
    assert set(shown.present) == {("hat", "shoes")}
    assert set(shown.absent[0]) <= {"tie", "dress", "coat"}
    assert len(shown.absent[0]) == 3
    labels = shown.labels[0]
    assert labels.shape == (32, 32)
    assert (labels[:10, 8:24] == 1).all()
    assert (labels[12:20] == 0).all()
    assert (labels[22:, 8:24] == 2).all()
    assert not labels[:, :5].any()  # beside the photograph, where its view is white
    assert (pixels[0, :, :30] == 255).all()


def test_photographs_of_unseen_clothes_are_unseen(masks: ClothingMasks) -> None:
    assert not clothing_views(masks, 224)[1].is_unseen.any()
    assert clothing_views(masks, 224, [tokens("hat")])[1].is_unseen.all()
    assert not clothing_views(masks, 224, [tokens("dress")])[1].is_unseen.any()


def test_backgrounds_are_parts_of_photographs_of_the_asked_split(tmp_path: Path) -> None:
    shades = {"1.png": 90, "2.png": 200, "3.png": 30}
    (tmp_path / "photographs").mkdir()
    for file, shade in shades.items():
        (tmp_path / "photographs" / file).write_bytes(png(np.full((40, 60), shade, np.uint8)))
    images = (("1.png", BACKGROUNDS, False), ("2.png", BACKGROUNDS, True), ("3.png", "animals", False))
    files = ImageFiles(
        archive=Archive(tmp_path / "photographs.zip"),
        images=tuple(
            NamedImage(file=file, source=source, name="", is_validation=held_out, is_unseen=False)
            for file, source, held_out in images
        ),
    )
    for is_validation, shade in ((False, 90), (True, 200)):
        background = photographed_background(files, is_validation=is_validation)
        assert background(np.random.default_rng(0), 32).shape == (32, 32, 3)
        assert (background(np.random.default_rng(0), 32) == shade).all()


def test_of_photographs_of_one_thing_only_the_name_is_known(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    shown = [("dog", False), ("dog", False), ("cat", False), ("", False), ("hawk", False), ("dog", True)]
    images = []
    for number, (name, is_validation) in enumerate(shown):
        (tmp_path / "photographs" / f"{number}.png").write_bytes(png(np.full((40, 60), 40 * number, np.uint8)))
        images.append(
            NamedImage(
                file=f"{number}.png", source="animals", name=name, is_validation=is_validation, is_unseen=name == "hawk"
            )
        )
    files = ImageFiles(archive=Archive(tmp_path / "photographs.zip"), images=tuple(images))
    pixels, views = named_views(files, 224, lambda names: torch.eye(len(names)), each=1)
    assert pixels.shape == (3, 224, 224, 3)
    assert views.present == (("cat",), ("dog",), ("hawk",))
    assert (views.labels == UNKNOWN).all()
    assert views.is_unseen.tolist() == [False, False, True]
    assert views.absent[:2] == (("dog",), ("cat",))  # never an unseen name beside a seen one
    assert set(views.absent[2]) == {"cat", "dog"}
    assert set(pixels[1, 112].ravel()) < {0, 40}, "one of the two training photographs of a dog"
