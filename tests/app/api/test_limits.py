"""What one request may ask for is what the settings say, in JSON and in a form, above the defaults and below."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.limits import Limits
from app.main import create_app
from app.settings import Settings
from tests.app.api.conftest import build_services
from tests.app.api.pictures import CROSS, SQUARE, png

pytestmark = pytest.mark.anyio
WAYS = [{"label": "square", "support": [SQUARE]}, {"label": "cross", "support": [CROSS]}]
FILE = ("x.png", png(8, 8))


@contextlib.asynccontextmanager
async def limited(data_dir: Path, limits: Limits) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(data_dir=data_dir, limits=limits), build_services)
    async with app.router.lifespan_context(app):
        await app.state.supervisor.settled()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            yield client


async def new_episode(client: httpx.AsyncClient) -> str:
    answer = await client.post("/fewshot/episodes", json={"ways": WAYS})
    assert answer.status_code == 201, answer.text
    return f"/fewshot/episodes/{answer.json()['id']}"


async def test_queries_of_a_classification_are_bounded_in_both_forms(tmp_path: Path) -> None:
    async with limited(tmp_path, Limits(max_queries=2)) as client:
        url = f"{await new_episode(client)}/classify"
        for count, status in ((2, 200), (3, 422)):
            in_json = await client.post(url, json={"queries": [SQUARE] * count})
            in_form = await client.post(url, files=[("query", FILE)] * count)
            assert (in_json.status_code, in_form.status_code) == (status, status)
        assert in_json.json()["detail"] == in_form.json()["detail"] == "Send 1 to 2 queries."
