"""The whole app in process over real stores; only the device is a fake."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray

from app.api.deps import Platform, Services, Tasks
from app.composition import open_tasks
from app.domain import BundleInfo, Features, Reservation, View
from app.main import create_app
from app.settings import Settings
from models.transforms import to_unit
from models.types import TaskProfile

D = 16
SIZE = 128


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def text_vector(text: str) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return unit(np.random.default_rng(seed).standard_normal(D).astype(np.float32))


class FakeReservation:
    """Room for anything."""

    def __enter__(self) -> "FakeReservation":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def grow(self, *, views: int = 0, texts: int = 0) -> None:
        del views, texts

    def use(self, cost: int) -> int:
        del cost
        return 0


class FakeEngine:
    """Features as plain functions of pixels: `pooled` is a coarse layout of the foreground, `dense` the foreground."""

    def admit(self, *, views: int = 0, texts: int = 0, timeout_s: float | None = None) -> Reservation:
        del views, texts, timeout_s
        return FakeReservation()

    async def encode_views(
        self, views: Sequence[View], *, timeout_s: float | None = None, reservation: Reservation | None = None
    ) -> list[Features]:
        del timeout_s, reservation
        return [self._features(view) for view in views]

    async def encode_texts(
        self,
        texts: Sequence[str],
        *,
        timeout_s: float | None = None,
        reservation: Reservation | None = None,
        is_reproducible: bool = False,
    ) -> list[Features]:
        del timeout_s, reservation, is_reproducible
        dense = np.empty((D, 0, 0), np.float32)
        return [Features(pooled=text_vector(text), dense=dense, queue_ms=0.5, inference_ms=1.0) for text in texts]

    def _features(self, view: View) -> Features:
        assert view.pixels.shape == (SIZE, SIZE, 3)
        foreground = (1 - to_unit(view.pixels).mean(axis=0)) / 2
        cells = foreground.reshape(4, SIZE // 4, 4, SIZE // 4).mean(axis=(1, 3)).reshape(-1)
        dense = np.broadcast_to(foreground.reshape(32, 4, 32, 4).mean(axis=(1, 3)), (D, 32, 32))
        return Features(
            pooled=unit(cells.astype(np.float32) + 1e-3),
            dense=np.asarray(dense, np.float32),
            queue_ms=1.0,
            inference_ms=2.0,
        )


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
    )


def build_services(settings: Settings, platform: Platform) -> Services:
    bundle, engine = bundle_info(), FakeEngine()
    tasks = open_tasks(
        settings,
        bundle=bundle,
        engine=engine,
        images=platform.images,
        segmentation_head=FakeSegmentationHead(),
    )

    async def close() -> None:
        tasks.close()

    return Services(bundle=bundle, is_alive=lambda: True, tasks=tasks, on_stop=[close])


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
