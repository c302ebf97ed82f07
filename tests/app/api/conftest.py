"""The whole app in process over the real engine and stores; only the networks are a fake."""

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d

from app.api.deps import Platform, Services, Tasks
from app.composition import assemble_services
from app.domain import BundleInfo
from app.main import create_app
from app.settings import Settings
from models.types import ImageBatch, ImageFeatures, TaskProfile, TextFeatures

D = 16
SIZE = 128


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def text_vector(text: str) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return unit(np.random.default_rng(seed).standard_normal(D).astype(np.float32))


class FakeEncoder:
    """Features as plain functions of pixels: `pooled` is a coarse layout of the foreground, `dense` the foreground."""

    dimension = D

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def encode_images(self, batch: ImageBatch) -> ImageFeatures:
        assert batch.pixels.shape[1:] == (3, SIZE, SIZE)
        foreground = (1 - batch.pixels.mean(dim=1, keepdim=True)) / 2
        cells = avg_pool2d(foreground, SIZE // 4).flatten(1) + 1e-3
        dense = avg_pool2d(foreground, SIZE // 32).expand(-1, D, -1, -1)
        pooled = cells / cells.norm(dim=1, keepdim=True)
        return ImageFeatures(pooled=pooled, visual=pooled, dense=dense)

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        return TextFeatures(pooled=torch.from_numpy(np.stack([text_vector(text) for text in texts])))


class FakeSegmentationHead:
    """The first class is the foreground, the others find nothing."""

    def probabilities(self, dense: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
        values = np.full((len(texts) + 1, *dense.shape[1:]), 1e-3, np.float32)
        values[1] += dense[0]
        values[0] += 1 - dense[0]
        return np.asarray(values / values.sum(axis=0), np.float32)


def bundle_info() -> BundleInfo:
    profile = TaskProfile(resolution=SIZE, timestep=1, templates=("a drawing of a {}",))
    return BundleInfo(
        name="fake",
        fingerprint="f" * 64,
        dimension=D,
        device="cpu",
        dtype="float32",
        captioner="none",
        tasks={"retrieval": profile, "segmentation": profile, "fewshot": profile},
        manifest={},
        visual_dimension=D,
    )


def build_services(
    settings: Settings, platform: Platform, *, fingerprint: str = "f" * 64, features: Mapping[str, float] | None = None
) -> Services:
    """Services whose images are compared by `features`, by default by `semantic` alone."""
    info = replace(bundle_info(), fingerprint=fingerprint)
    if features is not None:
        profile = replace(info.tasks["retrieval"], features=features)
        info = replace(info, tasks={**info.tasks, "retrieval": profile, "fewshot": profile})
    return assemble_services(
        settings, platform, encoder=FakeEncoder(fingerprint), bundle=info, segmentation_head=FakeSegmentationHead()
    )


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[FastAPI]:
    app = create_app(Settings(data_dir=tmp_path / "data"), build_services)
    async with app.router.lifespan_context(app):
        await app.state.supervisor.settled()
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def tasks(app: FastAPI) -> Tasks:
    platform: Platform = app.state.platform
    assert platform.services is not None
    assert platform.services.tasks is not None
    return platform.services.tasks
