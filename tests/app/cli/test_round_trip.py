"""What the service exports, `vermouth gallery import` brings into another gallery with equal images and metadata."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from app.api.deps import Tasks
from app.cli.importing.files import UnreadableSource
from app.main import create_app
from app.settings import Settings
from tests.app.api.conftest import build_services
from tests.app.api.images import encoded, png
from tests.app.api.served import served
from tests.app.cli.importing.sources import read
from tests.app.cli.test_import import command, numbers

pytestmark = pytest.mark.anyio
ITEMS: list[dict[str, object]] = [
    {"id": "a", "metadata": {}, "caption": None},
    {"id": "v1.2", "metadata": {"path": "x", "n": 2**53 - 1, "f": 0.1, "ok": True, "none": None}, "caption": "a cat"},
    {"id": "v1_2", "metadata": {"nested": {"b": [1, "猫"]}, "": ""}, "caption": " spaced\n"},
    {"id": "V1.2", "metadata": {"json": 1}, "caption": ""},
    {"id": "x:1", "metadata": {"long": "y" * 2000}, "caption": "日本"},
]
KINDS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]


def images() -> list[bytes]:
    found = []
    for at, kind in enumerate(KINDS):
        pixels = np.asarray(Image.open(io.BytesIO(png(colour=(30 * at, 99, 60)))).convert("RGB"))
        found.append(encoded(pixels, kind))
    return found


async def fill(client: httpx.AsyncClient, gallery: str) -> None:
    (await client.put(f"/galleries/{gallery}")).raise_for_status()
    files = [("image", data) for data in images()]
    answer = await client.post(f"/galleries/{gallery}/items", files=files, data={"items": json.dumps(ITEMS)})
    assert [one["status"] for one in answer.json()["results"]] == ["created"] * len(ITEMS)


async def content(client: httpx.AsyncClient, gallery: str) -> list[tuple[object, ...]]:
    items = (await client.get(f"/galleries/{gallery}/items")).json()["items"]
    return [
        (one["id"], one["metadata"], one["caption"], one["media_type"], one["sha256"], one["width"]) for one in items
    ]


@pytest.mark.parametrize("kind", ["ndjson", "webdataset", "webdataset in a folder"])
async def test_an_export_comes_back_with_images_and_metadata(tmp_path: Path, kind: str) -> None:
    async with (
        served(create_app(Settings(data_dir=tmp_path / "data"), build_services)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        await fill(client, "first")
        answer = await client.get("/galleries/first/export", params={"format": kind.partition(" ")[0]})
        source = tmp_path / ("items.ndjson" if kind == "ndjson" else "items.tar")
        source.write_bytes(answer.content)
        if kind.endswith("folder"):
            with tarfile.open(source) as archive:
                archive.extractall(tmp_path / "folder", filter="data")
            source = tmp_path / "folder"
        code, output, error = await command(source, str(client.base_url), "--gallery", "second")
        assert (code, numbers(output)["added"]) == (0, len(ITEMS)), output + error
        assert await content(client, "second") == await content(client, "first")
        for one in ITEMS:
            urls = [f"/galleries/{gallery}/items/{one['id']}/image" for gallery in ("first", "second")]
            first, second = [(await client.get(url)).content for url in urls]
            assert first == second
        again = await command(source, str(client.base_url), "--gallery", "second")
        assert numbers(again[1])["there already"] == len(ITEMS)


async def test_an_ndjson_export_of_a_deleted_gallery_is_rejected_with_the_reason(tmp_path: Path) -> None:
    async with (
        served(create_app(Settings(data_dir=tmp_path / "data"), build_services)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        await fill(client, "first")
        (tmp_path / "items.ndjson").write_bytes((await client.get("/galleries/first/export")).content)
        await client.delete("/galleries/first", params={"confirm": "first"})
        code, output, _ = await command(tmp_path / "items.ndjson", str(client.base_url), "--gallery", "second")
    assert code == 1
    assert numbers(output)["rejected"] == len(ITEMS)
    assert "/galleries/first/items/a/image" in output


async def test_items_that_change_during_an_export(client: httpx.AsyncClient, tasks: Tasks) -> None:
    await fill(client, "first")
    _, found = await tasks.items.export_images("first")
    first, _ = await anext(found)
    assert first.id == "a"
    await client.delete("/galleries/first/items/v1_2")
    new = png(colour=(1, 2, 3))
    await client.put("/galleries/first/items/x:1", files={"image": new}, data={"metadata": '{"new": 1}'})
    for old in (images()[2], images()[4]):
        while tasks.stores.blobs.has(hashlib.sha256(old).hexdigest()):  # until the garbage collection is done
            await client.get("/livez")
    rest = {one.id: (one.metadata, data) async for one, data in found}
    assert rest.keys() == {"v1.2", "V1.2", "x:1"}
    assert rest["x:1"] == ({"new": 1}, new)


async def test_an_export_that_is_cut_short_is_not_imported(client: httpx.AsyncClient, tmp_path: Path) -> None:
    await fill(client, "first")
    data = (await client.get("/galleries/first/export", params={"format": "webdataset"})).content
    assert len(read(_written(tmp_path / "whole.tar", data))) == 3 * len(ITEMS) + 4
    for size in (len(data) - 1024, len(data) - 2000, 512 * 5):
        with pytest.raises(UnreadableSource):
            read(_written(tmp_path / "cut.tar", data[:size]))


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
