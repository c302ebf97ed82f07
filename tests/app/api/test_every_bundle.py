"""One contract for every kind of bundle: each endpoint answers text, sketch, image, liked items and joint queries.

Scores and probabilities are those of the features that the bundle names, computed here from exported vectors.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from app.main import create_app
from app.runtime.process import Phase
from app.settings import Settings
from models.bundle.pack import write_random
from tests.app.api.images import BAR, CROSS, SQUARE, base64_image, png

pytestmark = pytest.mark.anyio
WEIGHTS = Path(__file__).parents[3] / "weights"
IMAGES: dict[str, Any] = {
    "square": SQUARE,
    "cross": CROSS,
    "red": base64_image(png()),
    "green": base64_image(png(80, 80, (20, 160, 60))),
}
Vectors = Mapping[str, Mapping[str, NDArray[np.float32]]]
"""By item and feature."""
HEADS = {"mini": False, "tiny-sd": True, "tiny-sd-heads": False}
"""Kinds of bundles, and whether each is training-free."""


@pytest.fixture(scope="module", params=HEADS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "mini":
        return WEIGHTS / "mini"
    folder = tmp_path_factory.mktemp("bundle") / str(request.param)
    write_random(folder, arch=request.param, seed=0)
    return folder


@asynccontextmanager
async def serving(bundle: Path, data_dir: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The whole app over a real bundle."""
    app = create_app(Settings(bundle=bundle, data_dir=data_dir, threads=1, **settings))
    async with app.router.lifespan_context(app):
        assert await app.state.supervisor.settled() is Phase.READY
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            yield client


async def sent(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await client.post(path, **body)
    assert answer.is_success, answer.text
    return answer.json()


async def fill(client: httpx.AsyncClient) -> Vectors:
    """Add the images; returns the vectors of each item by feature."""
    body = [{"id": name, "image": image} for name, image in IMAGES.items()]
    added = await sent(client, "/galleries/default/items", json=body)
    assert [one["status"] for one in added["results"]] == ["created"] * len(IMAGES)
    lines = (await client.get("/galleries/default/export")).text.splitlines()
    names = {"semantic": "vector", "visual": "visual_vector"}
    return {
        row["id"]: {feature: np.array(row[name], np.float32) for feature, name in names.items() if name in row}
        for row in map(json.loads, lines)
    }


def similarity(
    one: Mapping[str, NDArray[np.float32]], other: Mapping[str, NDArray[np.float32]], weights: Mapping[str, float]
) -> float:
    return sum(weight * float(one[name] @ other[name]) for name, weight in weights.items() if weight)


async def scores(client: httpx.AsyncClient, **body: Any) -> dict[str, float]:
    return {one["id"]: one["score"] for one in (await sent(client, "/retrieve", json=body))["results"]}


async def test_every_endpoint_answers_every_kind_of_input(bundle: Path, tmp_path: Path) -> None:
    async with serving(bundle, tmp_path) as client:
        described = (await client.get("/bundle")).json()
        expected = HEADS[described["name"].removeprefix("random-")]
        assert described["training_free"] is expected
        assert described["features"] == ["semantic", "visual", "dense"]
        ready = (await client.get("/readyz")).json()
        assert ready == {"status": "ready", "features": described["features"], "training_free": expected}
        vectors = await fill(client)
        await check_retrieval(client, described, vectors)
        await check_few_shot(client, described, vectors)
        for image in IMAGES.values():
            found = await sent(client, "/segment", json={"image": image, "classes": ["square", {"name": "a cat"}]})
            assert [one["name"] for one in found["classes"]] == ["square", "a cat"]


async def check_retrieval(client: httpx.AsyncClient, described: Any, vectors: Vectors) -> None:
    weights: Mapping[str, float] = described["tasks"]["retrieval"]["features"]
    assert sum(weights.values()) == pytest.approx(1)
    assert [len(vector) for vector in vectors["red"].values()] == [
        described[name] for name in ("dimension", "visual_dimension")[: 1 + ("visual" in weights)]
    ]
    own = vectors["red"]
    by_image = {name: similarity(own, other, weights) for name, other in vectors.items()}
    by_meaning = {name: similarity(own, other, {"semantic": 1}) for name, other in vectors.items()}
    assert await scores(client, image=IMAGES["red"]) == pytest.approx(by_image, abs=1e-4)
    assert await scores(client, like={"positive": ["red"]}) == pytest.approx(by_image, abs=1e-4)
    assert await scores(client, sketch=IMAGES["red"]) == pytest.approx(by_meaning, abs=1e-4)
    form = await sent(client, "/retrieve", files={"image": png()}, data={"k": "2"})
    assert form["results"][0]["id"] == "red"
    assert len(form["results"]) == 2
    embedded = await sent(client, "/embed", json={"images": [IMAGES["red"]], "texts": ["a cat"]})
    assert embedded["dimension"] == described["dimension"]
    np.testing.assert_allclose(embedded["images"][0], own["semantic"], atol=1e-4)
    text = np.array(embedded["texts"][0])
    by_text = {name: float(text @ other["semantic"]) for name, other in vectors.items()}
    assert await scores(client, text="a cat") == pytest.approx(by_text, abs=1e-4)
    # Joint queries: the slices of the sum, over the sum of their lengths.
    semantic = 0.7 * (own["semantic"] + weights["semantic"] * own["semantic"]) + 0.3 * text
    visual = 0.7 * weights.get("visual", 0.0) * own.get("visual", np.zeros(1))
    length = np.linalg.norm(semantic) + np.linalg.norm(visual)
    joint = {
        name: float(semantic @ other["semantic"] + visual @ other.get("visual", np.zeros(1))) / length
        for name, other in vectors.items()
    }
    body = {"sketch": IMAGES["red"], "image": IMAGES["red"], "text": "a cat", "text_weight": 0.3}
    found = await scores(client, **body)
    assert found == pytest.approx(joint, abs=1e-4)
    assert max(map(abs, found.values())) <= 1
    assert await scores(client, sketch=BAR, like={"positive": ["cross"], "negative": ["green"]})
    opposite = await client.post("/retrieve", json={"like": {"positive": ["red"], "negative": ["red"]}})
    assert opposite.status_code == 422


async def check_few_shot(client: httpx.AsyncClient, described: Any, vectors: Vectors) -> None:
    """With one example a class, the probability is the softmax of the similarities to the examples."""
    weights: Mapping[str, float] = described["tasks"]["fewshot"]["features"]
    ways = [{"label": name, "support": [image]} for name, image in IMAGES.items()]
    for method in ("ridge", "cache", "prototype"):
        body = {"ways": ways, "queries": [BAR, IMAGES["green"]], "method": method}
        made = await sent(client, "/fewshot/episodes", json=body)
        assert made["predictions"][1]["label"] == "green"
    again = await sent(client, f"/fewshot/episodes/{made['id']}/classify", json={"queries": [IMAGES["green"]]})
    found = {one["label"]: one["probability"] for one in again["predictions"][0]["scores"]}
    logits = np.array([20 * similarity(vectors["green"], vectors[name], weights) for name in found])
    expected = np.exp(logits - logits.max())
    assert list(found.values()) == pytest.approx((expected / expected.sum()).tolist(), abs=1e-3)
