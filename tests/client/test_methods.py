"""Every method of both clients against a server, and the client beside the OpenAPI document."""

import base64
import contextlib
import inspect
import io
import json
import re
import tarfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.app.api.images import png
from vermouth_client import AsyncClient, Client, Item, NewItem, Strokes, Svg, VermouthError, models
from vermouth_client.errors import Conflict, NotFound, PreconditionFailed, Unauthenticated
from vermouth_client.routes import Routes

pytestmark = [pytest.mark.server, pytest.mark.anyio]
SQUARE = Strokes([[[0, 100, 100, 0, 0], [0, 0, 100, 100, 0]]], 128, 128)
BAR = Svg('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M1 5H8" stroke="black"/></svg>')
ARRAY = np.asarray(Image.effect_noise((40, 30), 60))
LEFT_OUT = {
    ("get", "/livez"): "for a supervisor",
    ("get", "/startupz"): "for a supervisor",
    ("get", "/metrics"): "for Prometheus",
    ("get", "/errors/{code}"): "every code has a class here",
    ("post", "/session"): "a cookie for browsers; the client sends its key",
}
NO_MODEL = {
    "CocoAnnotation", "CocoCategory", "CocoDocument", "CocoImage",  # a dict, as pycocotools takes it
    "ErrorKind", "Problem", "ProblemField", "LiveError", "LiveProblem",  # exceptions
    "Health",  # of the probes that are left out
}  # fmt: skip


class Recorder:
    """A client whose methods' names are noted."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.used: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.used.add(name)
        return getattr(self.client, name)


def story(client: Any, gallery: str, folder: Path) -> Generator[Any, Any, None]:
    """Uses every method; yields what it returns, and is sent its result."""
    assert (yield client.ready()).status == "ready"
    assert (yield client.version()).name == "vermouth-perception"
    fingerprint = (yield client.bundle()).fingerprint
    # Galleries and items, each from another form of image.
    assert (yield client.put_gallery(gallery, description="Icons")).description == "Icons"
    assert gallery in {one.name for one in (yield client.galleries()).galleries}
    assert (yield client.gallery(gallery)).index.fingerprint == fingerprint
    file = folder / "photo.png"
    file.write_bytes(png())
    with file.open("rb") as opened:
        new = [NewItem(file, "path", {"kind": "photo"}, "a photo"), NewItem(opened, "file", {"kind": "photo"})]
        new += [NewItem(Image.open(file), "pil"), NewItem(ARRAY, "array"), NewItem(SQUARE, "strokes"), NewItem(BAR)]
        written = yield client.add_items(gallery, new)
    assert [one.status for one in written.results] == ["created"] * 6
    assert (yield client.put_item(gallery, "bytes", png(), metadata={"kind": "copy", "n": 1})).width == 60
    item = yield client.patch_item(gallery, "bytes", {"n": None, "more": [1]})
    assert item.metadata == {"kind": "copy", "more": [1]}
    with pytest.raises(PreconditionFailed):
        yield client.put_item(gallery, "bytes", metadata={}, version=item.seq - 1)
    assert (yield client.item(gallery, "bytes")) == item
    assert (yield client.item_image(gallery, "bytes")) == png()
    assert (yield client.item_image(gallery, "bytes", size=32))[8:12] == b"WEBP"
    assert (yield client.items(gallery, limit=2, filter={"kind": "photo"})).total == 2
    assert {"path", "array"} <= (yield client.item_ids(gallery))
    assert [one.count for one in (yield client.facets(gallery, "kind")).facets] == [2, 1]
    assert (yield client.export(gallery, folder / "all.ndjson")) >= item.seq
    assert len([json.loads(line)["id"] for line in (folder / "all.ndjson").read_text().splitlines()]) == 7
    yield client.export(gallery, folder / "all.tar", format="webdataset")
    assert tarfile.is_tarfile(folder / "all.tar")
    report = yield client.import_items(gallery, [NewItem(SQUARE, "one"), NewItem(SQUARE, "path")], skip={"path"})
    assert (report.created, report.skipped, report.rejected) == (1, 1, [])
    # Search.
    found = yield client.retrieve(SQUARE, gallery=gallery, k=3, filter={"kind": "photo"})
    assert (found.total, found.gallery, len(found.results)) == (2, gallery, 2)
    found = yield client.retrieve(text="house", image=Item(gallery, "path"), like=["path"], gallery=gallery, offset=1)
    assert len(found.results) == 7
    assert len((yield client.embed([SQUARE], ["house"])).texts[0]) == (yield client.bundle()).dimension
    # Masks.
    found = yield client.segment(png(), ["thing", {"name": "other", "synonyms": ["rest"]}])
    assert (found.width, found.height, found.fingerprint) == (60, 40, fingerprint)
    assert [one.mask.sum() for one in found.classes] == [one.area for one in found.classes]
    assert found.labels.shape == (40, 60)
    assert found.overlay().size == (60, 40)
    for form in ("polygons", "png", "label_map"):
        found = yield client.segment(png(), ["thing"], format=form, background=False)
        (one,) = found.classes
        assert one.area > 0
        encoded = found.label_map if form == "label_map" else one.encoded
        if form == "polygons":
            assert all(len(polygon) >= 6 for polygon in encoded)
        else:
            assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (60, 40)
        with pytest.raises(ValueError, match="where the format is rle"):
            found.labels  # noqa: B018 - a property
    assert (yield client.put_class_set(gallery, ["thing"])).version == 1
    assert gallery in {one.name for one in (yield client.class_sets()).class_sets}
    assert (yield client.class_set(gallery)).classes[0].name == "thing"
    document = yield client.segment_coco(png(), class_set=gallery)
    assert (document["categories"], document["images"][0]["file_name"]) == ([{"id": 1, "name": "thing"}], "")
    for overlay in (False, True):
        assert (yield client.segment_png(png(), class_set=gallery, overlay=overlay))[:4] == b"\x89PNG"
    yield client.delete_class_set(gallery, version=1)
    # Classes from examples.
    ways = {"square": [SQUARE, Item(gallery, "strokes")], "bar": [BAR]}
    episode = yield client.create_episode(ways, name="shapes", queries=[SQUARE])
    assert len(episode.predictions) == 1
    assert episode.id in {one.id for one in (yield client.episodes(limit=100)).episodes}
    assert len((yield client.classify(episode.id, [SQUARE, png()], top_k=1)).predictions) == 2
    changed = yield client.add_support(episode.id, {"photo": [png()], "bar": [ARRAY]}, version=1)
    assert {way.label: way.shots for way in changed.ways} == {"square": 2, "bar": 2, "photo": 1}
    first = changed.ways[0].support[0].id
    assert (yield client.support_image(episode.id, first))
    assert (yield client.remove_support(episode.id, first, version=2)).version == 3
    assert (yield client.patch_episode(episode.id, version=3, name=None, labels={"bar": "line"})).name is None
    assert (yield client.remove_way(episode.id, "photo", version=4)).version == 5
    assert [way.label for way in (yield client.episode(episode.id)).ways] == ["square", "line"]
    yield client.delete_episode(episode.id, version=5)
    # Ends.
    for method in (client.job, client.delete_job):
        with pytest.raises(NotFound):
            yield method(f"job_{'0' * 24}")
    assert (yield client.delete_items(gallery, ["one", "none"])).missing == ["none"]
    yield client.delete_item(gallery, "bytes")
    with pytest.raises(Conflict):
        yield client.delete_gallery(gallery)
    yield client.delete_gallery(gallery, with_items=True)


ROUTES = {name for name, _ in inspect.getmembers(Routes) if not name.startswith("_")} | {"import_items", "item_ids"}


def test_the_blocking_client_reaches_every_route(service: dict[str, Any], tmp_path: Path) -> None:
    reached: set[tuple[str, str]] = set()

    def note(request: httpx.Request) -> None:
        reached.add((request.method.lower(), request.url.path))

    with Client(**service, event_hooks={"request": [note]}) as client:
        recorder = Recorder(client)
        run = story(recorder, "blocking", tmp_path)
        result = next(run)
        with contextlib.suppress(StopIteration):
            while True:
                result = run.send(result)
        document = httpx.get(f"{service['base_url']}/openapi.json").json()
    assert recorder.used == ROUTES
    patterns = {
        (method, path): re.compile(re.sub(r"\{\w+\}", "[^/]+", path))
        for path, methods in document["paths"].items()
        for method in methods
        if path != "/retrieve/live"  # a WebSocket: `AsyncClient.live`
    }
    unreached = {
        key for key, path in patterns.items() if not any(k[0] == key[0] and path.fullmatch(k[1]) for k in reached)
    }
    assert unreached == LEFT_OUT.keys()
    check_models(document)


async def test_the_client_for_asyncio_has_the_same_methods(service: dict[str, Any], tmp_path: Path) -> None:
    async with AsyncClient(**service) as client:
        recorder = Recorder(client)
        run = story(recorder, "asyncio", tmp_path)
        step = next(run)
        with contextlib.suppress(StopIteration):
            while True:
                try:
                    result = await step
                except VermouthError as err:
                    step = run.throw(err)
                else:
                    step = run.send(result)
        found = await client.retrieve(text="house")
        with pytest.raises(ValueError, match="read their images with `item_image`"):
            found.sheet()
    assert recorder.used == ROUTES


def check_models(document: dict[str, Any]) -> None:
    """Every response of the document has a model here of its name, with its members."""
    answers: set[str] = set()
    schemas = document["components"]["schemas"]

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name in schemas and name not in answers:
                answers.add(name)
                walk(schemas[name])
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    for path, methods in document["paths"].items():
        for operation in methods.values() if path != "/retrieve/live" else ():
            walk([body for status, body in operation["responses"].items() if status[0] == "2"])
    assert len(answers) > 30
    wanted = {
        name: set(schemas[name].get("properties", ())) for name in answers - NO_MODEL if "enum" not in schemas[name]
    }
    assert {name: members_of(name) for name in wanted} == wanted


def members_of(name: str) -> set[str]:
    model: type[models.Answer] = getattr(models, name, models.Answer)
    return {field.alias or key for key, field in model.model_fields.items()}


class Proxy(httpx.HTTPTransport):
    """Strips a prefix, as a proxy before the service does."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode()
        assert path.startswith("/vermouth/")
        request.url = request.url.copy_with(raw_path=path.removeprefix("/vermouth").encode())
        request.headers["X-Forwarded-Prefix"] = "/vermouth"
        return super().handle_request(request)


def test_results_are_shown_from_a_service_below_a_prefix(service: dict[str, Any]) -> None:
    below = {**service, "base_url": f"{service['base_url']}/vermouth"}
    with Client(**below, transport=Proxy()) as client:
        client.put_gallery("sheet")
        client.add_items("sheet", [NewItem(png(colour=(n, 9, 9)), f"i{n}") for n in range(6)])
        found = client.retrieve(SQUARE, gallery="sheet")
        assert found.sheet(size=50).size == (250, 2 * 66)
        assert found.results[0].image_url.startswith("/vermouth/galleries/sheet/items/")
        client.delete_gallery("sheet", with_items=True)


def test_a_wrong_key_and_names_that_are_another_route(service: dict[str, Any]) -> None:
    with Client(**{**service, "key": "wrong"}) as client:
        with pytest.raises(Unauthenticated, match="known API key") as caught:
            client.galleries()
        assert caught.value.request_id
        for name in ("", ".", ".."):
            with pytest.raises(ValueError, match="empty or dots"):
                client.delete_gallery(name, with_items=True)
