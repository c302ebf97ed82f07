"""The error matrix: every bad request has its own code, is quick and leaves nothing behind."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.api.deps import Tasks
from tests.app.api.images import SQUARE, base64_image, bomb, png

pytestmark = pytest.mark.anyio
SLOWEST_S = 3.0


@pytest.fixture(autouse=True)
def nothing_is_left_behind(app: FastAPI, tasks: Tasks, tmp_path: Path) -> Iterator[None]:
    """After each test the stores hold what they held before: nothing."""
    del app
    started_s = time.perf_counter()
    yield
    assert time.perf_counter() - started_s < SLOWEST_S
    assert [(gallery.name, gallery.count) for gallery in tasks.stores.galleries.all()] == [("default", 0)]
    assert tasks.stores.episodes.all(after=None, limit=10) == []
    assert not [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()]


def check(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["type"] == f"/errors/{problem['code']}"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text


BAD_FILES = {
    "text-named-png": (b"I am no image.\n" * 10, 400),
    "truncated": (png(200, 200)[:20_000], 400),
    "empty": (b"", 400),
    "damaged-tiff": (b"II*\x00" + b"\x00" * 100, 400),
    "icon": (b"\x00\x00\x01\x00" + b"\x00" * 100, 415),
    "svg-as-file": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
    "81-megapixels": (bomb(9000), 413),
}


@pytest.mark.parametrize(("data", "status"), BAD_FILES.values(), ids=BAD_FILES.keys())
async def test_bad_files_are_refused_by_every_task(client: httpx.AsyncClient, data: bytes, status: int) -> None:
    file = ("image.png", data)
    check(await client.post("/retrieve", files={"sketch": file}), status)
    check(await client.post("/embed", files={"image": file}), status)
    check(await client.post("/segment", files={"image": file}, data={"classes": "cat"}), status)
    check(await client.post("/fewshot/episodes", files=[("support:a", file), ("support:b", ("b", png()))]), status)
    check(await client.put("/galleries/default/items/x", files={"image": file}), status)
    answer = await client.post("/galleries/default/items", files=[("image", file)])
    assert answer.json()["results"][0]["problem"]["status"] == status


async def test_256_bombs_are_refused_by_their_headers(client: httpx.AsyncClient) -> None:
    data = bomb()
    assert len(data) < 100_000
    check(await client.post("/galleries/default/items", files=[("image", ("x.png", data))] * 256), 413)


BODIES: dict[str, tuple[str, object, int]] = {
    "k-zero": ("/retrieve", {"text": "a", "k": 0}, 422),
    "k-large": ("/retrieve", {"text": "a", "k": 1001}, 422),
    "k-bool": ("/retrieve", {"text": "a", "k": True}, 422),
    "k-text": ("/retrieve", {"text": "a", "k": "5"}, 422),
    "nothing-to-search": ("/retrieve", {"k": 5}, 422),
    "unknown-field": ("/retrieve", {"text": "a", "colour": "red"}, 422),
    "not-built-field": ("/retrieve", {"text": "a", "filter": {}}, 422),
    "weight": ("/retrieve", {"text": "a", "text_weight": 1.1}, 422),
    "unknown-gallery": ("/retrieve", {"text": "a", "gallery": "nowhere"}, 404),
    "gallery-name": ("/retrieve", {"text": "a", "gallery": "../x"}, 422),
    "two-forms": ("/retrieve", {"sketch": {"base64": "AAAA", "svg": "<svg/>"}}, 422),
    "no-form": ("/retrieve", {"sketch": {}}, 422),
    "not-base64": ("/retrieve", {"sketch": {"base64": "%%%"}}, 400),
    "base64-text": ("/retrieve", {"sketch": {"base64": "aGVsbG8="}}, 400),
    "strokes-ragged": ("/retrieve", {"sketch": {"strokes": [[[1, 2], [1]]], "width": 9, "height": 9}}, 422),
    "strokes-empty": ("/retrieve", {"sketch": {"strokes": [], "width": 9, "height": 9}}, 422),
    "strokes-canvas": ("/retrieve", {"sketch": {"strokes": [[[1], [1]]], "width": 5000, "height": 9}}, 413),
    "svg-entity": ("/retrieve", {"sketch": {"svg": '<!DOCTYPE s [<!ENTITY a "b">]><svg>&a;</svg>'}}, 422),
    "url-is-off": ("/retrieve", {"sketch": {"url": "http://localhost/x.png"}}, 422),
    "unknown-item": ("/retrieve", {"sketch": {"item": {"gallery": "default", "id": "x"}}}, 404),
    "embed-nothing": ("/embed", {}, 422),
    "no-classes": ("/segment", {"image": SQUARE, "classes": []}, 422),
    "no-image": ("/segment", {"classes": ["cat"]}, 422),
    "no-items": ("/galleries/default/items", [], 422),
    "too-many-items": ("/galleries/default/items", [{"image": SQUARE}] * 257, 422),
    "item-id-dots": ("/galleries/default/items", [{"id": "..", "image": SQUARE}], 422),
    "item-id-slash": ("/galleries/default/items", [{"id": "a/b", "image": SQUARE}], 422),
    "metadata-large": ("/galleries/default/items", [{"image": SQUARE, "metadata": {"a": "x" * 17_000}}], 422),
    "items-of-nowhere": ("/galleries/nowhere/items", [{"image": SQUARE}], 404),
}


@pytest.mark.parametrize(("url", "body", "status"), BODIES.values(), ids=BODIES.keys())
async def test_bad_json_bodies(client: httpx.AsyncClient, url: str, body: object, status: int) -> None:
    check(await client.post(url, json=body), status)


@pytest.mark.parametrize(
    "strokes",
    [[[[], []]], [[[], [], []], [[], []]], [[[1], []]], [[[1, 2], [1]]]],
    ids=["empty", "both-empty", "no-y", "ragged"],
)
async def test_an_empty_drawing_is_refused_by_every_task(client: httpx.AsyncClient, strokes: object) -> None:
    drawing = {"strokes": strokes, "width": 256, "height": 256}
    check(await client.post("/retrieve", json={"sketch": drawing}), 422)
    check(await client.post("/embed", json={"images": [drawing]}), 422)
    check(await client.post("/segment", json={"image": drawing, "classes": ["cat"]}), 422)
    ways = [{"label": "a", "support": [SQUARE]}, {"label": "b", "support": [drawing]}]
    check(await client.post("/fewshot/episodes", json={"ways": ways}), 422)
    check(await client.put("/galleries/default/items/x", json={"image": drawing}), 422)
    answer = await client.post("/galleries/default/items", json=[{"image": drawing}])
    assert answer.json()["results"][0]["problem"]["status"] == 422


async def test_empty_strokes_beside_others_are_ignored(client: httpx.AsyncClient) -> None:
    # So large that its lines are wide enough to be joined in curves.
    square = {**SQUARE, "width": 256, "height": 256}
    drawing = {**square, "strokes": [[[], []], *SQUARE["strokes"], [[], [], []]]}  # type: ignore[misc]  # a list
    for body, name, url in (({}, "sketch", "/retrieve"), ({"classes": ["house"]}, "image", "/segment")):
        found = await client.post(url, json={**body, name: drawing})
        plain = await client.post(url, json={**body, name: square})
        assert found.status_code == 200, found.text
        assert {**found.json(), "timings_ms": None} == {**plain.json(), "timings_ms": None}
    vectors = (await client.post("/embed", json={"images": [drawing, SQUARE]})).json()["images"]
    assert vectors[0] == vectors[1]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"text": "a", "min_score": NaN}', 422),
        (b'{"text": "a", "min_score": Infinity}', 422),
        (b'{"text": "a", "min_score": 1e999}', 422),
        (b'{"text": ', 400),
        (b'{"text": "\xff"}', 400),
        (b'{"text": "\\ud800"}', 400),
        (b"[" * 100_000, 400),
        (b"", 400),
        (b"[]", 422),
    ],
    ids=["nan", "infinity", "overflow", "cut", "utf-8", "surrogate", "deep", "empty", "list"],
)
async def test_bad_json_text(client: httpx.AsyncClient, content: bytes, status: int) -> None:
    headers = {"content-type": "application/json"}
    check(await client.post("/retrieve", content=content, headers=headers), status)


async def test_numbers_in_metadata_must_be_finite(client: httpx.AsyncClient) -> None:
    content = json.dumps([{"image": SQUARE, "metadata": {"a": 1}}]).replace('"a": 1', '"a": 1e999')
    headers = {"content-type": "application/json"}
    check(await client.post("/galleries/default/items", content=content, headers=headers), 422)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""], ids=str)
@pytest.mark.parametrize("url", ["/retrieve", "/embed", "/segment", "/fewshot/episodes", "/galleries/default/items"])
async def test_other_content_types_are_415(client: httpx.AsyncClient, url: str, kind: str) -> None:
    check(await client.post(url, content=b"text=a", headers={"content-type": kind}), 415)


async def test_forms_are_checked_like_json(client: httpx.AsyncClient) -> None:
    sketch = {"sketch": ("x.png", png())}
    check(await client.post("/retrieve", files=sketch, data={"k": "0"}), 422)
    check(await client.post("/retrieve", files=sketch, data={"colour": "red"}), 422)
    check(await client.post("/retrieve", files=sketch, data={"min_score": "nan"}), 422)
    check(await client.post("/retrieve", files={"photo": ("x.png", png())}), 422)
    check(await client.post("/retrieve", files=[("sketch", ("x.png", png()))] * 2), 422)
    check(await client.post("/retrieve", files={"x": b""}, data={"sketch": "text"}), 422)
    two = [("image", ("x.png", png()))] * 2
    check(await client.post("/galleries/default/items", files=two, data={"items": "[{}]"}), 422)
    check(await client.post("/galleries/default/items", files=two, data={"items": "{"}), 400)
    check(await client.post("/retrieve", content=b"x", headers={"content-type": "multipart/form-data"}), 400)


@pytest.mark.parametrize("item_id", ["..", ".", "%2e%2e", "%2E%2E", "..%2f..", "a%2fb", "-a", "a b", "ä", "x" * 129])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_bad_ids_reach_nothing(app: FastAPI, client: httpx.AsyncClient, method: str, item_id: str) -> None:
    # Straight to the app: an HTTP client would collapse the dots itself.
    status = await _status(app, method, f"/galleries/default/items/{item_id}")
    assert status in {400, 404, 422}
    del client


async def test_bad_gallery_names_are_422(client: httpx.AsyncClient) -> None:
    for name in ("A", "-a", "x" * 65, "a.b"):
        check(await client.put(f"/galleries/{name}"), 422)
    check(await client.get("/galleries/nowhere"), 404)
    check(await client.get("/galleries/default/items?limit=0"), 422)
    check(await client.get("/galleries/default/items?filter={}"), 422)
    check(await client.put("/galleries/default", json={"name": "x"}), 422)


async def _status(app: FastAPI, method: str, raw_path: str) -> int:
    """The status of a request whose path no client has touched."""
    from urllib.parse import unquote

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(raw_path), "raw_path": raw_path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"test"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1), "server": ("test", 80),
    }  # fmt: skip
    status = 0

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": json.dumps({"image": SQUARE}).encode(), "more_body": False}

    async def send(message: dict[str, object]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = int(str(message["status"]))

    await app(scope, receive, send)  # type: ignore[arg-type]  # the ASGI types are mutable mappings of Any
    return status


async def test_a_bad_neighbour_does_not_spoil_a_good_request(client: httpx.AsyncClient) -> None:
    items = [{"id": "bad", "image": base64_image(b"x")}, {"id": "good", "image": SQUARE}]
    answer = (await client.post("/galleries/default/items", json=items)).json()
    assert [result["status"] for result in answer["results"]] == ["rejected", "created"]
    assert (await client.delete("/galleries/default/items/good")).status_code == 204
