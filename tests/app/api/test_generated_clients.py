"""Clients that tools generate from the OpenAPI document: a Python one calls every route, TypeScript types compile.

The tools are no dependency: `pip install openapi-python-client` and `npm install openapi-typescript typescript`
somewhere on the PATH, and attrs and python-dateutil, which generated clients need, on the PYTHONPATH.
"""

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.app.api.images import BAR, CROSS, SQUARE, png
from tests.app.api.served import new_app, served
from tests.app.api.test_openapi import DOCUMENT, OPERATIONS
from tests.app.fakes import FakeEncoder

pytestmark = pytest.mark.anyio
PYTHON, TYPESCRIPT, COMPILER = (shutil.which(name) for name in ("openapi-python-client", "openapi-typescript", "tsc"))


class Client:
    """A generated client, and which of its functions were called."""

    def __init__(self, port: int) -> None:
        self.called = set[str]()
        package = import_module("generated")
        self._models = import_module("generated.models")
        self._types = import_module("generated.types")
        self._client = package.Client(base_url=f"http://127.0.0.1:{port}")
        self.http = self._client.get_httpx_client()

    def model(self, name: str, value: dict[str, Any]) -> Any:
        return getattr(self._models, name).from_dict(value)

    def file(self) -> Any:
        import io

        return self._types.File(payload=io.BytesIO(png()), file_name="a.png", mime_type="image/png")

    def call(self, function: str, status: int = 200, **arguments: Any) -> Any:
        """The parsed answer of a function such as `retrieval.retrieve`."""
        answer = import_module(f"generated.api.{function}").sync_detailed(client=self._client, **arguments)
        assert answer.status_code == status, (function, answer.content)
        self.called.add(function.rsplit(".", 1)[-1])
        return answer


@pytest.mark.skipif(PYTHON is None, reason="openapi-python-client is not installed")
async def test_a_generated_python_client_calls_every_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(DOCUMENT), encoding="utf-8")
    command = [str(PYTHON), "generate", "--path", "openapi.json", "--output-path", "generated", "--meta", "none"]
    made = await asyncio.to_thread(_run, command, tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    functions = {one.stem for one in (tmp_path / "generated" / "api").glob("*/*.py")} - {"__init__"}
    assert functions == {operation["operationId"] for _, _, operation in OPERATIONS}, made.stdout
    monkeypatch.syspath_prepend(tmp_path)
    try:
        async with served(new_app(FakeEncoder(), tmp_path / "data")) as port:
            client = Client(port)
            with contextlib.closing(client.http):
                await asyncio.to_thread(_call_everything, client)
    finally:
        for name in [one for one in sys.modules if one.partition(".")[0] == "generated"]:
            del sys.modules[name]
    assert client.called == functions - {"add_items"}  # see `_call_galleries`


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _call_everything(client: Client) -> None:
    for name in ("livez", "readyz", "startupz"):
        client.call(f"health.{name}")
    for name in ("version", "bundle", "metrics"):
        client.call(f"operation.{name}")
    client.call("operation.open_session", 204)
    assert client.call("operation.error_kind", code="invalid").parsed.status == 422
    client.call("jobs.get_job", 404, job_id="job_" + "0" * 24)
    client.call("jobs.delete_job", 404, job_id="job_" + "0" * 24)
    _call_galleries(client)
    _call_tasks(client)
    _call_episodes(client)


def _call_galleries(client: Client) -> None:
    client.call("galleries.put_gallery", 201, name="g", body=client.model("GalleryFields", {"description": "a"}))
    items = [client.model("NewItem", {"id": name, "image": SQUARE, "metadata": {"kind": name}}) for name in "ab"]
    # openapi-python-client 0.29.1 asks `isinstance(body, list[NewItem])` where a body is a list or a form, a TypeError:
    # its own HTTP client sends its models instead.
    written = client.http.post("/galleries/g/items", json=[one.to_dict() for one in items])
    assert [one["status"] for one in written.json()["results"]] == ["created", "created"]
    put = client.model("ItemPut", {"image": BAR, "metadata": {"n": 2**62}})
    assert client.call("items.put_item", 201, name="g", item_id="c", body=put).parsed.metadata["n"] == 2**62
    patch = client.model("ItemPatch", {"metadata": {"m": 1}})
    client.call("items.patch_item", name="g", item_id="c", body=patch)
    assert client.call("items.get_item", name="g", item_id="c").parsed.metadata.to_dict() == {"n": 2**62, "m": 1}
    assert client.call("items.get_item_image", name="g", item_id="c").content.startswith(b"\x89PNG")
    assert client.call("items.list_items", name="g", limit=2).parsed.total == 3
    assert client.call("items.export_items", name="g").content.count(b"\n") == 3
    assert client.call("galleries.get_facets", name="g", field="kind").parsed.total == 2
    assert client.call("galleries.get_gallery", name="g").parsed.count == 3
    assert client.call("galleries.list_galleries").parsed.total == 2
    client.call("items.delete_item", 204, name="g", item_id="c")
    deleted = client.model("ItemsDelete", {"ids": ["a", "none"]})
    assert client.call("items.delete_items", name="g", body=deleted).parsed.missing == ["none"]


def _call_tasks(client: Client) -> None:
    query = client.model("RetrieveRequest", {"sketch": SQUARE, "gallery": "g", "filter": {"kind": "b"}})
    assert [one.id for one in client.call("retrieval.retrieve", body=query).parsed.results] == ["b"]
    form = client.model("RetrieveRequestForm", {"gallery": "g", "k": 1})
    form.image = client.file()
    assert len(client.call("retrieval.retrieve", body=form).parsed.results) == 1
    embedded = client.call("retrieval.embed", body=client.model("EmbedRequest", {"texts": ["a"], "images": [BAR]}))
    assert (len(embedded.parsed.texts), len(embedded.parsed.images)) == (1, 1)
    segment = {"image": SQUARE, "classes": ["house", {"name": "tree"}]}
    for form_name in ("rle", "polygons", "label_map", "png"):
        found = client.call(
            "segmentation.segment", body=client.model("SegmentRequest", {**segment, "format": form_name})
        )
        assert [one.name for one in found.parsed.classes] == ["house", "tree"]
    coco = client.call("segmentation.segment", body=client.model("SegmentRequest", {**segment, "format": "coco"}))
    assert [one.name for one in coco.parsed.categories] == ["house", "tree"]
    fields = client.model("ClassSetFields", {"classes": ["sky"]})
    client.call("class_sets.put_class_set", 201, name="c", body=fields)
    assert client.call("class_sets.get_class_set", name="c").parsed.classes[0].name == "sky"
    assert client.call("class_sets.list_class_sets").parsed.total == 1
    client.call("class_sets.delete_class_set", 204, name="c")
    client.call("galleries.delete_gallery", 204, name="g", confirm="g")


def _call_episodes(client: Client) -> None:
    ways = [{"label": "square", "support": [SQUARE]}, {"label": "cross", "support": [CROSS, CROSS]}]
    made = client.call("fewshot.create_episode", 201, body=client.model("EpisodeRequest", {"ways": ways})).parsed
    queries = client.model("ClassifyRequest", {"queries": [CROSS]})
    found = client.call("fewshot.classify", episode_id=made.id, body=queries).parsed
    assert found.predictions[0].label == "cross"
    at: dict[str, Any] = {"episode_id": made.id, "if_match": '"1"'}
    more = client.model("SupportRequest", {"ways": [{"label": "bar", "support": [BAR]}]})
    client.call("fewshot.add_support", **at, body=more)
    support = made.ways[1].support[0].id
    client.call("fewshot.remove_support", **{**at, "if_match": '"2"'}, support_id=support)
    change = client.model("EpisodePatch", {"labels": {"bar": "line"}})
    client.call("fewshot.patch_episode", **{**at, "if_match": '"3"'}, body=change)
    client.call("fewshot.remove_way", **{**at, "if_match": '"4"'}, label="line")
    assert [way.label for way in client.call("fewshot.get_episode", episode_id=made.id).parsed.ways] == [
        "square",
        "cross",
    ]
    assert client.call("fewshot.list_episodes").parsed.total == 1
    client.call("fewshot.get_support_image", episode_id=made.id, support_id=made.ways[0].support[0].id)
    client.call("fewshot.delete_episode", 204, episode_id=made.id)


@pytest.mark.skipif(TYPESCRIPT is None or COMPILER is None, reason="openapi-typescript or tsc is not installed")
def test_the_types_of_a_typescript_client_compile(tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(DOCUMENT), encoding="utf-8")
    # Without the option, members with a default would be required of requests.
    command = [str(TYPESCRIPT), "openapi.json", "-o", "vermouth.ts", "--default-non-nullable", "false"]
    made = _run(command, tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    (tmp_path / "use.ts").write_text(
        """import type { components, operations, paths } from "./vermouth";
type Found = components["schemas"]["RetrieveResponse"];
type Sent = operations["retrieve"]["requestBody"]["content"]["application/json"];
type Problem = components["schemas"]["Problem"];
export const query: Sent = { text: "a house", k: 3, offset: 10 };
export const first = (answer: Found): string | undefined => answer.results[0]?.image_url;
export const code = (problem: Problem): string => problem.code;
export const route: keyof paths = "/galleries/{name}/items/{item_id}";
""",
        encoding="utf-8",
    )
    command = [str(COMPILER), "--noEmit", "--strict", "--skipLibCheck", "use.ts"]
    checked = _run(command, tmp_path)
    assert checked.returncode == 0, checked.stdout
