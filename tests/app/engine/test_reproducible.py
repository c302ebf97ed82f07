"""Equal bits whatever the load, over a real encoder of random weights."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from app.domain import View
from app.engine.engine import REPRODUCIBLE_BATCH, BatchingEngine
from app.engine.executor import DeviceExecutor
from app.runtime.lru import ByteLru
from app.runtime.telemetry import Telemetry
from models.bundle.build import load_bundle
from models.bundle.pack import write_random
from models.encoder import Encoder
from models.types import ImageBatch, ImageFeatures
from tests.app.fakes import FakeEncoder, make_view

pytestmark = pytest.mark.anyio
SIDE = 64


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_random(folder, arch="tiny", seed=0)
    return load_bundle(folder, device="cpu").encoder


@pytest.fixture
async def engine(encoder: Encoder) -> AsyncIterator[BatchingEngine]:
    """Without a cache, so that every question reaches the device."""
    running = BatchingEngine(
        DeviceExecutor(encoder, threads=1), ByteLru(0), Telemetry(), max_batch=8, max_queue_cost=10_000
    )
    await running.start()
    yield running
    await running.stop()


def noise(number: int, *, caption: str | None = None, is_reproducible: bool = False) -> View:
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return View(pixels=pixels, timestep=50 + number, caption=caption, key=str(number), is_reproducible=is_reproducible)


async def under_load(engine: BatchingEngine, view: View, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    others = [
        asyncio.create_task(
            engine.encode_views([noise(one, caption="a cat" if one % 2 else None, is_reproducible=True)])
        )
        for one in range(1, neighbours + 1)
    ]
    (found,) = await engine.encode_views([view])
    await asyncio.gather(*others)
    return found.pooled, found.dense


@pytest.mark.parametrize("caption", [None, "a drawing of a fish"])
async def test_bits_do_not_depend_on_the_load(engine: BatchingEngine, caption: str | None) -> None:
    view = noise(0, caption=caption, is_reproducible=True)
    alone = await under_load(engine, view, 0)
    for neighbours in (1, 3, 9):
        crowded = await under_load(engine, view, neighbours)
        assert all(np.array_equal(here, there) for here, there in zip(alone, crowded, strict=True))


async def test_strings_too(engine: BatchingEngine) -> None:
    alone = await engine.encode_texts(["fish"], is_reproducible=True)
    longer = await engine.encode_texts(["a very long description of a fish", "fish"], is_reproducible=True)
    assert np.array_equal(alone[0].pooled, longer[1].pooled)


async def test_the_plain_way_agrees_closely(engine: BatchingEngine) -> None:
    (exact,) = await engine.encode_views([noise(0, is_reproducible=True)])
    (plain,) = await engine.encode_views([noise(0)])
    assert np.linalg.norm(exact.dense - plain.dense) <= 1e-4 * np.linalg.norm(exact.dense)


async def test_every_pass_holds_the_bucket_and_the_two_ways_never_share_one() -> None:
    encoder, captions = FakeEncoder(), list[int]()
    plain_encode = encoder.encode_images

    def encode(batch: ImageBatch) -> ImageFeatures:
        captions.append(sum(caption is not None for caption in batch.captions))
        return plain_encode(batch)

    encoder.encode_images = encode  # type: ignore[method-assign]  # watched
    engine = BatchingEngine(DeviceExecutor(encoder), ByteLru(1 << 20), Telemetry(), max_batch=8, max_queue_cost=1000)
    await engine.start()
    views = [
        View(pixels=make_view(0.5).pixels, timestep=1, caption=caption, key=f"{number}", is_reproducible=True)
        for number, caption in enumerate([None, "a", None, "b", None])
    ]
    found = await engine.encode_views([*views, make_view(0.25)])
    await engine.stop()
    assert [float(one.pooled[0]) for one in found] == [0.5] * 5 + [0.25]
    assert sorted(encoder.batches) == [1, REPRODUCIBLE_BATCH, REPRODUCIBLE_BATCH]
    assert sorted(captions) == [0, 0, REPRODUCIBLE_BATCH]
