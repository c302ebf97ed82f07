"""A bundle of random weights in the real layout, loaded by the code that serves."""

import shutil
from pathlib import Path

import pytest
import torch

from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.pack import write_random
from models.types import ImageBatch


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_random(folder, arch="tiny", seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_bundle: Path) -> LoadedBundle:
    return load_bundle(tiny_bundle, device="cpu")


@pytest.fixture
def tiny_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def batch() -> ImageBatch:
    pixels = torch.rand((8, 3, 128, 128), generator=torch.Generator().manual_seed(1)) * 2 - 1
    timesteps = torch.tensor([50, 50, 0, 999, 200, 10, 50, 50])
    return ImageBatch(pixels=pixels, timesteps=timesteps, captions=[None, "a fish", *[None] * 5, "a house"])
