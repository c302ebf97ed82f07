"""Everything that heads on photographs are trained on, from files and a small data set through the real networks."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models.bundle.build import load_extractor
from models.bundle.pack import mini_uhead_shape, prior_manifest
from models.transforms import to_unit
from training.data.dataset import DataSet, ImageRecord
from training.data.photographs import BACKGROUNDS, Archive, ImageFiles, NamedImage
from training.heads.caches import FrozenCaches
from training.heads.feature_store import CLASS_FEATURES, CLASS_MAP, EXPERT_CELLS, TAP_CELLS
from training.heads.frozen import photograph_features, with_scenes
from training.heads.scene_views import SceneViews

PRIOR = Path(__file__).parents[3] / "weights" / "mini"
SIDE = 224


@pytest.fixture(scope="module")
def images() -> DataSet:
    """A disc for each of ten seen and ten unseen names."""
    y, x = np.mgrid[:128, :128]
    pixels = np.full((20, 128, 128, 3), 255, np.uint8)
    alpha = np.zeros((20, 128, 128), np.uint8)
    for row in range(20):
        disc = np.hypot(x - 64, y - 64) < 30 + row
        pixels[row][disc] = (12 * row, 250 - 12 * row, 90)
        alpha[row][disc] = 255
    records = (
        ImageRecord(
            row=row,
            source="openmoji",
            kind="picture",
            hexcode=f"{row}",
            name=f"thing{chr(97 + row)}",
            split="seen" if row < 10 else "unseen",
        )
        for row in range(20)
    )
    return DataSet(pixels=pixels, alpha=alpha, images=tuple(records), drawings=())


def files(folder: Path, shown: list[tuple[str, str]], is_validation: bool = False) -> ImageFiles:
    """Files of (source, name)."""
    folder.mkdir()
    found = []
    for number, (source, name) in enumerate(shown):
        out = io.BytesIO()
        shade = np.random.default_rng(number).integers(0, 256, (50, 60, 3), np.uint8)
        Image.fromarray(shade).save(out, "PNG")
        (folder / f"{number}.png").write_bytes(out.getvalue())
        found.append(
            NamedImage(file=f"{number}.png", source=source, name=name, is_validation=is_validation, is_unseen=False)
        )
    return ImageFiles(archive=Archive(folder.with_suffix(".zip")), images=tuple(found))


def test_views_and_scenes_have_the_maps_that_serving_has(images: DataSet, tmp_path: Path) -> None:
    photographs = files(tmp_path / "photographs", [("a", "thinga"), ("a", "lamp"), (BACKGROUNDS, "")])
    sketches = files(tmp_path / "sketches", [("t", "lamps")])
    caches = FrozenCaches(PRIOR, tmp_path / "cache", side=SIDE, progress=lambda _done, _: None)
    data = photograph_features(images, photographs, sketches, caches)
    assert data.views.kinds[:4] == ("photograph", "photograph", "photograph", "sketch")
    assert set(data.views.kinds[4:]) == {"picture", "edges"}  # of both parts of the data set
    lamp, other = data.views.concepts[1], data.views.concepts[3]
    assert lamp == other == ("thing:lamp",)
    assert data.views.concepts[0] == ("0",)  # the emoji of the same name
    assert data.views.concepts[2] == ()
    assert data.views.is_unseen.sum() == 20
    _check_maps(data.store.read(torch.arange(len(data.store))), np.load(tmp_path / "cache" / "photographs-at-224.npy"))

    clothing = (
        np.zeros((2, SIDE, SIDE, 3), np.uint8),
        SceneViews(
            labels=np.ones((2, 32, 32), np.uint8),
            present=(("hat",), ("coat",)),
            absent=(("tie",), ("dress",)),
            is_unseen=np.array([True, False]),
        ),
    )
    whole = with_scenes(data, images, caches, photographs=photographs, others={"clothing": clothing}, scenes=5)
    assert len(whole.scene_store) == len(whole.scenes.labels) == 2 * (5 + 2) + 2
    assert {"hat", "coat", "tie", "dress"} < set(whole.scene_names)
    assert whole.scenes.is_unseen.tolist() == [False] * 8 + [True] * 2 + [False] * 4 + [True, False]
    maps = whole.scene_store.read(torch.tensor([15]))
    assert maps["expert.3"].shape == (1, 320, 4, 4)
    assert maps[CLASS_MAP].shape == (1, 320, 7, 7)


@torch.inference_mode()
def _check_maps(maps: dict[str, torch.Tensor], pixels: NDArray[np.uint8]) -> None:
    """The cells of the first photographs are those of one pass of the extractor that serves."""
    extractor = load_extractor(PRIOR, prior_manifest(PRIOR, SIDE), device=torch.device("cpu"), dtype=torch.float32)
    views = torch.from_numpy(np.stack([to_unit(image) for image in pixels[:3]]))
    served = extractor(extractor.backbone.view(views), torch.full((3,), 50), [None] * 3)
    shape = mini_uhead_shape()
    for name, expected in (
        (EXPERT_CELLS, shape.expert_cells(served.expert)),
        (TAP_CELLS, shape.tap_cells(served.taps)),
    ):
        deviation = (maps[name][:3] - expected).norm() / expected.norm()
        assert deviation < 2e-3  # half precision
    assert maps[CLASS_FEATURES].shape[1:] == (1280, 1, 1)


def test_heads_on_the_expert_alone_need_no_taps(images: DataSet, tmp_path: Path) -> None:
    photographs = files(tmp_path / "photographs", [("a", "lamp")])
    sketches = files(tmp_path / "sketches", [("t", "lamps")])
    caches = FrozenCaches(PRIOR, tmp_path / "cache", side=SIDE, progress=lambda _done, _: None)
    data = photograph_features(images, photographs, sketches, caches, shares=2, with_taps=False)
    maps = data.store.read(torch.arange(len(data.store)))
    assert not maps[TAP_CELLS].any()
    assert maps[TAP_CELLS].shape[1] + maps[EXPERT_CELLS].shape[1] == 1312
    assert not list((tmp_path / "cache").glob("*latents*"))
