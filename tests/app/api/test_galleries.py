"""Galleries and items over HTTP."""

import io
import json
import re

import httpx
import pytest
from PIL import Image

from app.api.deps import Tasks
from tests.app.api.images import BAR, CROSS, SQUARE, base64_image, png

pytestmark = pytest.mark.anyio


async def test_default_is_there_and_stays(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/galleries")).json()
    assert listed == {"galleries": [{"name": "default", "description": "", "count": 0}], "total": 1}
    refused = await client.delete("/galleries/default")
    assert refused.status_code == 409
    assert refused.headers["content-type"] == "application/problem+json"


async def test_a_gallery_is_created_changed_and_deleted(client: httpx.AsyncClient) -> None:
    created = await client.put("/galleries/pets", json={"description": "Cats."})
    assert created.status_code == 201
    assert int(created.headers["x-seq"]) > 0
    again = await client.put("/galleries/pets")
    assert (again.status_code, again.json()["description"]) == (200, "Cats.")
    assert again.json()["index"]["vectors"] == 0
    gone = await client.delete("/galleries/pets")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await client.get("/galleries/pets")).status_code == 404


async def test_deleting_a_filled_gallery_needs_its_name(client: httpx.AsyncClient, tasks: Tasks) -> None:
    await client.put("/galleries/pets")
    await client.put("/galleries/pets/items/a", json={"image": SQUARE})
    assert (await client.delete("/galleries/pets")).status_code == 409
    assert (await client.delete("/galleries/pets?confirm=cats")).status_code == 409
    assert (await client.delete("/galleries/pets?confirm=pets")).status_code == 204
    assert tasks.stores.galleries.all()[0].name == "default"


async def test_multipart_items_keep_order_bytes_and_metadata(client: httpx.AsyncClient) -> None:
    first, second = png(), png(30, 50, (10, 200, 40))
    answer = await client.post(
        "/galleries/default/items",
        files=[("image", ("a.png", first)), ("image", ("b.png", second))],
        data={"items": json.dumps([{"id": "a", "metadata": {"n": 1}}, {"metadata": {"n": 2}}])},
    )
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["status"] for result in results] == ["created", "created"]
    assert str(answer.json()["seq"]) == answer.headers["x-seq"]
    item = (await client.get("/galleries/default/items/a")).json()
    assert (item["metadata"], item["width"], item["height"]) == ({"n": 1}, 60, 40)
    image = await client.get(item["image_url"])
    assert (image.content, image.headers["content-type"]) == (first, "image/png")
    made_up = (await client.get(f"/galleries/default/items/{results[1]['id']}")).json()
    assert made_up["metadata"] == {"n": 2}


async def test_a_bad_image_and_a_repeated_id_reject_themselves_only(client: httpx.AsyncClient, tasks: Tasks) -> None:
    answer = await client.post(
        "/galleries/default/items",
        json=[
            {"id": "a", "image": base64_image(png())},
            {"id": "b", "image": base64_image(b"no image at all")},
            {"id": "a", "image": SQUARE},
            {"id": "c", "image": CROSS},
        ],
    )
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["status"] for result in results] == ["created", "rejected", "rejected", "created"]
    assert results[1]["problem"]["status"] == 400
    assert results[2]["problem"]["status"] == 409
    assert "problem" not in results[0]
    assert tasks.stores.galleries.get("default").count == 2


async def test_put_creates_replaces_and_relabels(client: httpx.AsyncClient) -> None:
    url = "/galleries/default/items/x"
    assert (await client.put(url, json={"metadata": {"a": 1}})).status_code == 404
    assert (await client.put(url, json={"image": SQUARE})).status_code == 201
    assert (await client.put(url, json={"image": CROSS, "metadata": {"a": 2}})).status_code == 200
    relabelled = await client.put(url, json={"metadata": {"a": 3}})
    assert (relabelled.status_code, relabelled.json()["metadata"]) == (200, {"a": 3})
    form = await client.put(url, files={"image": ("x.png", png())}, data={"metadata": '{"a": 4}'})
    assert (form.status_code, form.json()["metadata"]) == (200, {"a": 4})


async def test_thumbnails_are_small_webp(client: httpx.AsyncClient) -> None:
    await client.put("/galleries/default/items/x", files={"image": ("x.png", png(200, 100))})
    answer = await client.get("/galleries/default/items/x/image?size=50")
    assert answer.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(answer.content)).size == (50, 25)
    assert (await client.get("/galleries/default/items/x/image?size=1")).status_code == 422


async def test_a_thumbnail_is_made_once_for_each_image_and_size(client: httpx.AsyncClient) -> None:
    async def shown(name: str, size: int) -> tuple[int, int]:
        answer = await client.get(f"/galleries/default/items/{name}/image?size={size}")
        return Image.open(io.BytesIO(answer.content)).size

    async def decoded() -> float:
        text = (await client.get("/metrics")).text
        return float(re.findall(r"^vermouth_decode_seconds_count (\S+)", text, re.MULTILINE)[0])

    for name in ("x", "y"):
        await client.put(f"/galleries/default/items/{name}", files={"image": ("x.png", png(200, 100))})
    before = await decoded()
    assert [await shown(name, size) for size in (50, 20) for name in ("x", "x", "y")] == [(50, 25)] * 3 + [(20, 10)] * 3
    assert await decoded() == before + 2
    await client.put("/galleries/default/items/x", files={"image": ("x.png", png(100, 200))})
    assert await shown("x", 50) == (25, 50)


async def test_items_come_in_pages(client: httpx.AsyncClient) -> None:
    images = [{"id": name, "image": image} for name, image in zip("abc", (SQUARE, CROSS, BAR), strict=True)]
    await client.post("/galleries/default/items", json=images)
    first = (await client.get("/galleries/default/items?limit=2")).json()
    assert [item["id"] for item in first["items"]] == ["a", "b"]
    rest = (await client.get(f"/galleries/default/items?limit=2&cursor={first['next_cursor']}")).json()
    assert ([item["id"] for item in rest["items"]], rest["next_cursor"]) == (["c"], None)


async def test_a_deleted_item_is_gone(client: httpx.AsyncClient) -> None:
    await client.put("/galleries/default/items/x", json={"image": SQUARE})
    deleted = await client.delete("/galleries/default/items/x")
    assert (deleted.status_code, deleted.headers["x-seq"].isdigit()) == (204, True)
    for url in ("/galleries/default/items/x", "/galleries/default/items/x/image"):
        assert (await client.get(url)).status_code == 404
    assert (await client.delete("/galleries/default/items/x")).status_code == 404
    assert (await client.post("/retrieve", json={"sketch": SQUARE})).json()["results"] == []
