"""`/retrieve` and `/embed` over HTTP."""

import httpx
import numpy as np
import pytest

from tests.app.api.conftest import D, text_vector
from tests.app.api.images import BAR, CROSS, SQUARE, base64_image, png

pytestmark = pytest.mark.anyio


@pytest.fixture
async def filled(client: httpx.AsyncClient) -> httpx.AsyncClient:
    items = [
        {"id": "square", "image": SQUARE, "metadata": {"name": "square"}},
        {"id": "cross", "image": CROSS},
        {"id": "bar", "image": BAR},
    ]
    answer = await client.post("/galleries/default/items", json=items)
    assert answer.status_code == 200
    return client


async def test_a_sketch_finds_itself_first(filled: httpx.AsyncClient) -> None:
    answer = await filled.post("/retrieve", json={"sketch": SQUARE, "k": 2})
    assert answer.status_code == 200
    body = answer.json()
    assert body["results"][0]["id"] == "square"
    assert len(body["results"]) == 2
    best = body["results"][0]
    assert best["score"] == pytest.approx(1, abs=1e-5)
    assert best["metadata"] == {"name": "square"}
    assert (await filled.get(best["image_url"])).status_code == 200
    assert {"decode", "queue", "inference", "search", "total"} <= body["timings_ms"].keys()
    assert "inference;dur=" in answer.headers["server-timing"]
    assert body["index_seq"] > 0


async def test_json_and_multipart_give_the_same_results(filled: httpx.AsyncClient) -> None:
    data = png(90, 70)
    as_json = await filled.post("/retrieve", json={"sketch": base64_image(data), "k": 3})
    as_form = await filled.post("/retrieve", files={"sketch": ("s.png", data)}, data={"k": "3"})
    assert as_form.status_code == 200
    assert as_json.json()["results"] == as_form.json()["results"]


async def test_the_weight_moves_a_query_from_sketch_to_text(filled: httpx.AsyncClient) -> None:
    async def results(**fields: object) -> list[object]:
        answer = await filled.post("/retrieve", json=fields)
        assert answer.status_code == 200
        found: list[object] = answer.json()["results"]
        return found

    sketch, text = await results(sketch=SQUARE), await results(text="a fish")
    assert await results(sketch=SQUARE, text="a fish", text_weight=0) == sketch
    assert await results(sketch=SQUARE, text="a fish", text_weight=1) == text
    assert await results(sketch=SQUARE, text="a fish") not in (sketch, text)


async def test_min_score_drops_and_an_item_can_be_the_query(filled: httpx.AsyncClient) -> None:
    query = {"sketch": {"item": {"gallery": "default", "id": "cross"}}, "min_score": 0.99}
    answer = (await filled.post("/retrieve", json=query)).json()
    assert [result["id"] for result in answer["results"]] == ["cross"]


async def test_embed_gives_the_vectors_that_retrieval_searches(client: httpx.AsyncClient) -> None:
    answer = await client.post("/embed", json={"images": [SQUARE, CROSS], "texts": ["a", "b", "c"]})
    body = answer.json()
    assert answer.status_code == 200
    assert (body["dimension"], len(body["images"]), len(body["texts"])) == (D, 2, 3)
    assert np.linalg.norm(body["images"], axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert body["texts"][1] == pytest.approx(text_vector("b").tolist(), abs=1e-6)
    form = await client.post("/embed", files=[("image", ("a.png", png()))], data={"texts": ["a"]})
    assert (len(form.json()["images"]), len(form.json()["texts"])) == (1, 1)


@pytest.mark.parametrize("text", ["   ", "\u200b", "\u00a0\u2060"])
async def test_a_blank_text_is_refused_everywhere(client: httpx.AsyncClient, text: str) -> None:
    for answer in (
        await client.post("/retrieve", json={"sketch": SQUARE, "text": text}),
        await client.post("/retrieve", files={"text": (None, text)}),
        await client.post("/embed", json={"texts": ["a", text]}),
    ):
        assert answer.status_code == 422, answer.text
        assert [error["message"] for error in answer.json()["errors"]] == ["is blank"]
    assert (await client.post("/retrieve", json={"text": "\U0001f468\u200d\U0001f469"})).status_code == 200  # an emoji


async def test_a_bad_image_among_others_is_named_by_its_place(client: httpx.AsyncClient) -> None:
    good, bad = ("a.png", png()), ("b.png", b"no image")
    for path, files, place in (
        ("/embed", [("image", good), ("image", bad), ("image", good)], "Image 2 of 3: "),
        ("/fewshot/episodes", [("support:a", good), ("support:b", good), ("support:b", bad)], "Image 3 of 3: "),
        ("/embed", [("image", good), ("image", bad), ("image", bad)], "Image 2 of 3: The bytes"),
        ("/embed", [("image", bad)], "The bytes"),
    ):
        answer = await client.post(path, files=files)
        assert answer.json()["detail"].startswith(place), answer.text
