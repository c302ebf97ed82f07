"""Few-shot episodes over HTTP."""

import json

import httpx
import pytest

from app.api.deps import Tasks
from tests.app.api.images import BAR, CROSS, SQUARE, png

pytestmark = pytest.mark.anyio
WAYS = [{"label": "square", "support": [SQUARE, SQUARE]}, {"label": "cross", "support": [CROSS]}]


async def test_an_episode_is_created_and_classifies(client: httpx.AsyncClient) -> None:
    created = await client.post("/fewshot/episodes", json={"name": "shapes", "ways": WAYS})
    assert created.status_code == 201
    body = created.json()
    assert created.headers["location"] == f"/fewshot/episodes/{body['id']}"
    assert created.headers["etag"] == '"1"'
    assert [(way["label"], way["shots"]) for way in body["ways"]] == [("square", 2), ("cross", 1)]
    assert (body["version"], body["method"], body["leave_one_out"]["accuracy"]) == (1, "prototype", 1.0)
    assert body["leave_one_out"]["confusion"] == {"square": {"square": 2}}
    assert "predictions" not in body
    assert (await client.get(body["ways"][0]["support"][0]["image_url"])).headers["content-type"] == "image/png"
    answer = await client.post(f"{created.headers['location']}/classify", json={"queries": [CROSS, SQUARE], "top_k": 1})
    assert answer.status_code == 200
    predictions = answer.json()["predictions"]
    assert [prediction["label"] for prediction in predictions] == ["cross", "square"]
    assert [len(prediction["scores"]) for prediction in predictions] == [1, 1]
    assert not predictions[0]["abstained"]


async def test_queries_of_the_creation_are_answered_in_order(client: httpx.AsyncClient) -> None:
    request = {"ways": WAYS, "queries": [SQUARE, BAR], "abstain_below": 0.999999}
    body = (await client.post("/fewshot/episodes", json=request)).json()
    first = body["predictions"][0]
    assert sum(score["probability"] for score in first["scores"]) == pytest.approx(1, abs=1e-5)
    assert (first["label"], first["abstained"]) == (None, True)
    assert len(body["predictions"]) == 2


@pytest.mark.parametrize("by_name", [True, False], ids=["support:<label>", "options.labels"])
async def test_both_multipart_forms_name_their_ways(client: httpx.AsyncClient, by_name: bool) -> None:
    images = [png(colour=(200, 0, 0)), png(colour=(0, 200, 0)), png(colour=(0, 0, 200))]
    labels = ["äpfel", "pear", "äpfel"]
    names = [f"support:{'%C3%A4pfel' if label == 'äpfel' else label}" if by_name else "support" for label in labels]
    files = [(name, ("x.png", image)) for name, image in zip(names, images, strict=True)]
    files.append(("query", ("q.png", images[0])))
    options = {"name": "fruit"} if by_name else {"name": "fruit", "labels": labels}
    answer = await client.post("/fewshot/episodes", files=files, data={"options": json.dumps(options)})
    assert answer.status_code == 201
    body = answer.json()
    assert [(way["label"], way["shots"]) for way in body["ways"]] == [("äpfel", 2), ("pear", 1)]
    assert len(body["predictions"]) == 1
    url = f"/fewshot/episodes/{body['id']}/classify"
    form = await client.post(url, files=[("query", ("q.png", images[1]))], data={"top_k": "1"})
    assert [len(p["scores"]) for p in form.json()["predictions"]] == [1]


async def test_episodes_are_listed_and_deleted_whole(client: httpx.AsyncClient, tasks: Tasks) -> None:
    ids = sorted([(await client.post("/fewshot/episodes", json={"ways": WAYS})).json()["id"] for _ in range(3)])
    first = (await client.get("/fewshot/episodes?limit=2")).json()
    rest = (await client.get(f"/fewshot/episodes?cursor={first['next_cursor']}")).json()
    assert [episode["id"] for episode in [*first["episodes"], *rest["episodes"]]] == ids
    assert first["episodes"][0]["ways"] == [{"label": "square", "shots": 2}, {"label": "cross", "shots": 1}]
    for episode_id in ids:
        assert (await client.get(f"/fewshot/episodes/{episode_id}")).headers["etag"] == '"1"'
        assert (await client.delete(f"/fewshot/episodes/{episode_id}")).status_code == 204
        assert (await client.get(f"/fewshot/episodes/{episode_id}")).status_code == 404
    assert tasks.stores.episodes.all(after=None, limit=10) == []


@pytest.mark.parametrize(
    "body",
    [
        {"ways": []},
        {"ways": WAYS[:1]},
        {"ways": [WAYS[0], WAYS[0]]},
        {"ways": [{"label": "a\n", "support": [SQUARE]}, WAYS[0]]},
        {"ways": [{"label": "a", "support": []}, WAYS[0]]},
        {"ways": WAYS, "method": "svm"},
        {"ways": WAYS, "top_k": 0},
        {"ways": WAYS, "ttl_seconds": -1},
    ],
    ids=["none", "one", "equal", "control", "no-support", "method", "top_k", "ttl"],
)
async def test_values_out_of_bounds_are_422(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    assert (await client.post("/fewshot/episodes", json=body)).status_code == 422


async def test_one_bad_support_refuses_the_episode_and_stores_nothing(client: httpx.AsyncClient, tasks: Tasks) -> None:
    files = [("support:a", ("a.png", png())), ("support:b", ("b.png", b"text"))]
    assert (await client.post("/fewshot/episodes", files=files)).status_code == 400
    assert tasks.stores.episodes.all(after=None, limit=10) == []


async def test_unknown_episodes_are_404(client: httpx.AsyncClient) -> None:
    url = f"/fewshot/episodes/ep_{'0' * 24}"
    assert (await client.get(url)).status_code == 404
    assert (await client.delete(url)).status_code == 404
    assert (await client.post(f"{url}/classify", json={"queries": [SQUARE]})).status_code == 404
    assert (await client.post(f"{url}/classify", json={"queries": []})).status_code == 422
