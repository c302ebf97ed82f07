"""What one request may ask for is what the settings say, in JSON and in a form, above the defaults and below."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.domain import Limits
from app.main import create_app
from app.settings import Settings
from tests.app.api.conftest import build_services
from tests.app.api.images import BAR, CROSS, SQUARE, png

pytestmark = pytest.mark.anyio
WAYS = [{"label": "square", "support": [SQUARE]}, {"label": "cross", "support": [CROSS]}]
FILE = ("x.png", png(8, 8))
ITEMS = "/galleries/default/items"
THREE_CLASSES = {"image": SQUARE, "classes": ["a", "b", "c"]}


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


def episode(*, ways: int = 2, shots: int = 1, queries: int = 0) -> dict[str, object]:
    listed = [{"label": f"way {at}", "support": [SQUARE] * shots} for at in range(ways)]
    return {"ways": listed, "queries": [CROSS] * queries}


LIFTED: list[tuple[Limits, str, object]] = [
    (Limits(max_k=1001), "/retrieve", {"text": "a", "k": 1001}),
    (Limits(max_ways=513), "/fewshot/episodes", episode(ways=513)),
    (Limits(max_ways=513), "/fewshot/episodes", {**episode(), "top_k": 513}),
    (Limits(max_support_per_way=65), "/fewshot/episodes", episode(shots=65)),
    (Limits(max_queries=257), "/fewshot/episodes", episode(queries=257)),
    (Limits(max_request_images=1001), "/embed", {"images": [SQUARE] * 1001}),
    (Limits(max_items_per_call=257), ITEMS, [{"image": SQUARE}] * 257),
    (Limits(max_metadata_bytes=20_000), ITEMS, [{"image": SQUARE, "metadata": {"a": "x" * 17_000}}]),
]  # fmt: skip
IDS = ["k", "ways", "top_k", "support", "queries", "images", "items", "metadata"]


@pytest.mark.parametrize(("limits", "url", "body"), LIFTED, ids=IDS)
async def test_a_limit_above_the_default_lets_the_larger_request_in(
    tmp_path: Path, limits: Limits, url: str, body: object
) -> None:
    async with limited(tmp_path, limits) as client:
        answer = await client.post(url, json=body)
        assert answer.is_success, answer.text


LOWERED: list[tuple[Limits, str, object, int, str, str | None]] = [
    (Limits(max_k=5), "/retrieve", {"text": "a", "k": 6}, 422, "k is at most 5.", "k"),
    (Limits(max_ways=2), "/fewshot/episodes", episode(ways=3), 422, "An episode has 2 to 2 ways.", "ways"),
    (Limits(max_ways=2), "/fewshot/episodes", {**episode(), "top_k": 3}, 422, "top_k is at most 2.", "top_k"),
    (Limits(max_support_per_way=2), "/fewshot/episodes", episode(shots=3), 422, "A way has 1 to 2 support images.",
     "ways[0].support"),
    (Limits(max_queries=2), "/fewshot/episodes", episode(queries=3), 422, "At most 2 queries a request.", "queries"),
    (Limits(max_request_images=2), "/embed", {"images": [SQUARE] * 3}, 413, "A request may hold 2 images.", "images"),
    (Limits(max_items_per_call=2), ITEMS, [{"image": SQUARE}] * 3, 422, "Send 1 to 2 items a call.", None),
    (Limits(max_classes=2), "/segment", THREE_CLASSES, 422, "At most 2 classes a request.", None),
    (Limits(max_segment_strings=2), "/segment", THREE_CLASSES, 413, "Names and templates make more than 2 strings.",
     None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "url", "body", "status", "detail", "field"),
    LOWERED,
    ids=["k", "ways", "top_k", "support", "queries", "images", "items", "classes", "strings"],
)
async def test_a_limit_below_the_default_refuses_with_its_own_error_and_names_the_field(
    tmp_path: Path, limits: Limits, url: str, body: object, status: int, detail: str, field: str | None
) -> None:
    async with limited(tmp_path, limits) as client:
        answer = await client.post(url, json=body)
        assert (answer.status_code, answer.json()["detail"]) == (status, detail)
        assert [error["field"] for error in answer.json().get("errors", [])] == ([field] if field else [])


async def test_a_classification_over_a_limit_names_the_field(tmp_path: Path) -> None:
    async with limited(tmp_path, Limits(max_queries=2, max_ways=2)) as client:
        url = f"{await new_episode(client)}/classify"
        for body, field in (({"queries": [SQUARE] * 3}, "queries"), ({"queries": [SQUARE], "top_k": 3}, "top_k")):
            answer = await client.post(url, json=body)
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
        three = {"ways": [*WAYS, {"label": "bar", "support": [BAR]}]}
        url = url.replace("/classify", "/support")
        answer = await client.post(url, json=three, headers={"If-Match": "*"})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "ways")


async def test_support_is_added_up_to_the_limit(tmp_path: Path) -> None:
    async with limited(tmp_path, Limits(max_support_per_way=66, max_ways=3)) as client:
        url = f"{await new_episode(client)}/support"
        more = {"ways": [{"label": "square", "support": [SQUARE] * 65}]}
        answer = await client.post(url, json=more, headers={"If-Match": "*"})
        assert answer.status_code == 200, answer.text
        ways = [{"label": label, "support": [BAR]} for label in ("one", "two")]
        answer = await client.post(url, json={"ways": ways}, headers={"If-Match": "*"})
        assert (answer.status_code, answer.json()["detail"]) == (422, "An episode has at most 3 ways.")
