"""The same routes over a real bundle of random weights, the real engine and a restart between."""

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.main import create_app
from app.runtime.process import Phase
from app.settings import Settings
from models.bundle.pack import write_random
from tests.app.api.images import BAR, CROSS, SQUARE, png

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_random(folder, arch="tiny", seed=0)
    return folder


def new_app(bundle: Path, data_dir: Path) -> FastAPI:
    return create_app(Settings(bundle=bundle, data_dir=data_dir, threads=1))


async def test_every_task_answers_and_outlives_a_restart(bundle: Path, tmp_path: Path) -> None:
    first = new_app(bundle, tmp_path)
    async with first.router.lifespan_context(first):
        assert await first.state.supervisor.settled() is Phase.READY
        async with httpx.AsyncClient(transport=httpx.ASGITransport(first), base_url="http://test") as client:
            written, episode, before = await use_every_task(client)
    second = new_app(bundle, tmp_path)
    async with second.router.lifespan_context(second):
        assert await second.state.supervisor.settled() is Phase.READY
        async with httpx.AsyncClient(transport=httpx.ASGITransport(second), base_url="http://test") as client:
            after = (await client.get("/galleries/default")).json()
            assert after["index"] == before["index"]
            again = (await client.post("/retrieve", json={"sketch": CROSS})).json()["results"]
            assert [found["id"] for found in again] == [found["id"] for found in written]
            assert (await client.get(f"/fewshot/episodes/{episode}")).status_code == 200


async def use_every_task(client: httpx.AsyncClient) -> tuple[list[dict[str, str]], str, dict[str, object]]:
    """Search results for the cross, the episode's id and the gallery as it stands."""
    items = [{"id": name, "image": image} for name, image in (("square", SQUARE), ("cross", CROSS), ("bar", BAR))]
    added = await client.post("/galleries/default/items", json=items)
    assert [result["status"] for result in added.json()["results"]] == ["created"] * 3
    found = (await client.post("/retrieve", json={"sketch": CROSS})).json()["results"]
    assert (found[0]["id"], len(found)) == ("cross", 3)
    assert found[0]["score"] == pytest.approx(1, abs=1e-3)
    mixed = await client.post("/retrieve", json={"sketch": CROSS, "text": "a cross"})
    assert mixed.status_code == 200
    image = {"image": ("x.png", png(300, 200))}
    segmented = (await client.post("/segment", files=image, data={"classes": ["cat", "tree"]})).json()
    assert (segmented["width"], segmented["height"], len(segmented["classes"])) == (300, 200, 2)
    ways = [{"label": "square", "support": [SQUARE]}, {"label": "cross", "support": [CROSS]}]
    episode = (await client.post("/fewshot/episodes", json={"ways": ways, "queries": [CROSS]})).json()
    assert episode["predictions"][0]["label"] == "cross"
    return found, episode["id"], (await client.get("/galleries/default")).json()
