"""What one pass is shared by, and what it is not: the real engine behind the routes, with a device that counts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.deps import Platform, Services
from app.composition import assemble_services
from app.domain import BundleInfo
from app.main import create_app
from app.runtime.process import Phase
from app.settings import Settings
from models.transforms import plan_views
from models.types import TaskProfile
from tests.app.api.conftest import FakeSegmentationHead
from tests.app.api.images import CROSS, SQUARE, png
from tests.app.fakes import DIMENSION, FakeEncoder

pytestmark = pytest.mark.anyio
SIZE = 128


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
async def client(encoder: FakeEncoder, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    profile = TaskProfile(resolution=SIZE, timestep=1, templates=("{}",))
    bundle = BundleInfo(
        name="fake",
        fingerprint="fake",
        dimension=DIMENSION,
        device="cpu",
        dtype="fp32",
        captioner="none",
        tasks={"retrieval": profile, "segmentation": profile, "fewshot": profile},
        manifest={},
    )

    def build(settings: Settings, platform: Platform) -> Services:
        return assemble_services(
            settings, platform, encoder=encoder, bundle=bundle, segmentation_head=FakeSegmentationHead()
        )

    app = create_app(Settings(data_dir=tmp_path), build)
    async with app.router.lifespan_context(app):
        assert await app.state.supervisor.settled() is Phase.READY
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as connected:
            yield connected


async def sent(client: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    answer = await client.post(path, **body)
    assert answer.is_success, answer.text
    return answer


async def test_a_hundred_equal_requests_at_once_cost_one_pass(client: httpx.AsyncClient, encoder: FakeEncoder) -> None:
    encoder.batches.clear()
    answers = await asyncio.gather(*(sent(client, "/embed", json={"images": [SQUARE]}) for _ in range(100)))
    assert sum(encoder.batches) == 1
    assert len({answer.text for answer in answers}) == 1


async def test_three_tasks_on_one_image_cost_one_pass(client: httpx.AsyncClient, encoder: FakeEncoder) -> None:
    ways = [{"label": "square", "support": [SQUARE]}, {"label": "cross", "support": [CROSS]}]
    episode = (await sent(client, "/fewshot/episodes", json={"ways": ways})).json()["id"]
    image = png(SIZE, SIZE)
    encoder.batches.clear()
    await sent(client, "/retrieve", files={"sketch": image})
    await sent(client, "/segment", files={"image": image}, data={"classes": ["cat"]})
    await sent(client, f"/fewshot/episodes/{episode}/classify", files={"query": image})
    assert sum(encoder.batches) == 1


async def test_every_tile_is_a_sample_of_its_own(client: httpx.AsyncClient, encoder: FakeEncoder) -> None:
    image = png(300, 200)
    await sent(client, "/retrieve", files={"sketch": image})
    encoder.batches.clear()
    await sent(client, "/segment", files={"image": image}, data={"classes": ["cat"]})
    views = plan_views(200, 300, SIZE)
    assert len(views) > 2
    assert sum(encoder.batches) == len(views) - 1


@pytest.mark.parametrize(
    "other",
    [pytest.param({"caption": "a cat"}, id="another caption"), pytest.param({"reproducible": True}, id="reproducible")],
)
async def test_what_changes_the_features_is_not_answered_from_the_cache(
    client: httpx.AsyncClient, encoder: FakeEncoder, other: dict[str, object]
) -> None:
    await sent(client, "/retrieve", json={"sketch": SQUARE})
    encoder.batches.clear()
    await sent(client, "/retrieve", json={"sketch": SQUARE, **other})
    assert len(encoder.batches) == 1


async def test_a_string_is_embedded_once(client: httpx.AsyncClient, encoder: FakeEncoder) -> None:
    encoder.text_batches.clear()
    await sent(client, "/embed", json={"texts": ["cat", "cat", "dog"]})
    await sent(client, "/retrieve", json={"text": "cat"})
    await sent(client, "/segment", files={"image": png(SIZE, SIZE)}, data={"classes": ["dog", "cat"]})
    assert sum(encoder.text_batches) == 2
