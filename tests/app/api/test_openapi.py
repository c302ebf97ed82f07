"""The description of all routes: named schemas, examples, errors and headers, and a page that shows them offline."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from app.api.openapi import LIVE
from app.api.problems import catalogue
from app.api.schemas import fewshot, galleries, retrieval, segmentation
from app.api.schemas.wire import Problem
from tests.app.api.images import BAR, CROSS
from tests.app.api.test_routes import make_app

pytestmark = pytest.mark.anyio
Json = dict[str, Any]
DOCUMENT: Json = make_app().openapi()
METHODS = {"get", "put", "post", "patch", "delete"}
OPERATIONS = [(m, path, one) for path, item in DOCUMENT["paths"].items() for m, one in item.items() if m in METHODS]
IDS = [f"{method} {path}" for method, path, _ in OPERATIONS]


def resolved(node: Json) -> Json:
    """What a reference of the document leads to."""
    while "$ref" in node:
        target: Any = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def nodes(node: object) -> Iterator[Json]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from nodes(value)


def test_every_route_but_pages_and_aliases_is_described() -> None:
    hidden = {"/healthz", "/health", "/docs", "/docs/{name}", "/openapi.json", "/"}
    hidden |= {"/playground/{name}", "/playground/demo", "/playground/demo/{item}"}
    routes = {(m.lower(), one.path) for one in iter_route_contexts(make_app().routes) for m in one.methods or ()}
    assert {(m, path) for m, path in routes if path not in hidden} == {(m, path) for m, path, _ in OPERATIONS}
    assert DOCUMENT["paths"]["/retrieve/live"] == LIVE


@pytest.mark.parametrize("operation", [one for _, _, one in OPERATIONS], ids=IDS)
def test_bodies_and_answers_have_names_examples_and_errors(operation: Json) -> None:
    assert operation["summary"]
    assert operation["operationId"].isidentifier()
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        assert content["schema"].keys() == {"$ref"}, kind
        if kind == "application/json":
            schema = resolved(content["schema"])
            assert "examples" in resolved(schema.get("items", schema))
    successes = [(status, one) for status, one in operation["responses"].items() if status.startswith("2")]
    assert successes
    for _, response in successes:
        assert {"X-Request-ID", "Server-Timing"} <= response["headers"].keys()
        schema = response.get("content", {}).get("application/json", {}).get("schema")
        assert schema is None or schema.keys() <= {"$ref", "anyOf", "title"}
    for status, response in operation["responses"].items():
        if not status.startswith("2"):
            content = resolved(response)["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert content["examples"]
    # What is refused before it is a request of a route.
    assert {"400", "414", "431"} <= operation["responses"].keys()
    assert ("requestBody" in operation) is ("408" in operation["responses"])
    sent = {resolved(one)["name"] for one in operation["parameters"]}
    assert "X-Request-ID" in sent
    assert ("If-Match" in sent) is ("412" in operation["responses"])
    assert ("security" in operation) is ("401" in operation["responses"])


def test_every_error_has_an_example() -> None:
    found: Json = {}
    for response in DOCUMENT["components"]["responses"].values():
        found |= response["content"]["application/problem+json"]["examples"]
    assert found.keys() == catalogue().keys()
    for code, example in found.items():
        assert Problem.model_validate(example["value"]).code == code


@pytest.mark.parametrize("module", [fewshot, galleries, retrieval, segmentation], ids=lambda one: one.__name__)
def test_examples_are_of_their_models(module: object) -> None:
    models = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, BaseModel)]
    count = 0
    for model in models:
        extra = model.model_config.get("json_schema_extra")
        for example in extra.get("examples", []) if isinstance(extra, dict) else []:  # type: ignore[union-attr]  # a list
            model.model_validate(example)
            count += 1
    assert count >= 3


async def test_the_examples_are_accepted_by_the_service(client: httpx.AsyncClient) -> None:
    for path in ("/retrieve", "/embed", "/segment", "/fewshot/episodes"):
        body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for example in resolved(body)["examples"]:
            answer = await client.post(path, json=example)
            assert answer.status_code in {200, 201}, answer.text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("If-Match", ["*", '"1"', 'W/"1"', '"1", "2"', '"a" ,W/"2"', '""', "", "1", '"1', '*, "1"', '"1" "2"', "W/1"]),
        ("Idempotency-Key", ["a", "x" * 255, "~!", "", "x" * 256, "a b", "\xe9"]),
        ("X-Min-Seq", ["0", "1", "", "-1", "x", "1" * 19]),
        ("X-Request-Timeout-Ms", ["1000", "999999999", "0", "-1", "", "1000000000", "1.5"]),
    ],
)
async def test_a_header_is_refused_where_the_document_refuses_it(
    client: httpx.AsyncClient, name: str, values: list[str]
) -> None:
    ways = [{"label": "a", "support": [BAR]}, {"label": "b", "support": [CROSS]}]
    url = (await client.post("/fewshot/episodes", json={"ways": ways})).headers["location"]
    schema = DOCUMENT["components"]["parameters"][name]["schema"]
    for value in values:
        if schema["type"] == "integer":
            number = int(value) if value.lstrip("-").isdigit() else -1
            is_allowed = schema["minimum"] <= number <= schema["maximum"]
        else:
            is_allowed = re.search(schema["pattern"], value) is not None
        headers = {b"If-Match": b"*", name.encode(): value.encode("latin-1")}
        answer = await client.post(f"{url}/support", json={"ways": ways[:1]}, headers=headers)
        if name == "X-Min-Seq":
            answer = await client.get(url, headers={name: value, "X-Request-Timeout-Ms": "200"})
        assert (answer.status_code == 400) is not is_allowed, (value, answer.text)


async def test_the_seq_of_a_new_service_is_in_its_schema(client: httpx.AsyncClient) -> None:
    seq = int((await client.get("/galleries/default/export")).headers["x-seq"])
    schema = DOCUMENT["components"]["headers"]["X-Seq"]["schema"]
    assert schema["minimum"] <= seq < 2**31 < schema["maximum"]


def test_no_reference_leads_nowhere_and_no_definition_is_local() -> None:
    for node in nodes(DOCUMENT):
        if isinstance(node.get("$ref"), str):
            assert node["$ref"].startswith("#/components/")
            assert isinstance(resolved(node), dict)
        assert "$defs" not in node
        assert "x-limit" not in node


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)


async def test_the_page_needs_no_network() -> None:
    app = make_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        page = await client.get("/docs")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        addresses = re.findall(r"(?:src|href)=\"([^\"]+)\"|url: '([^']+)'", page.text)
        found = [first or second for first, second in addresses]
        assert len(found) == 4
        for address in found:
            assert not re.match(r"[a-z]+:|/", address), address
            assert (await client.get(f"/{address}")).status_code == 200, address
        assert (await client.get("/docs/none.js")).status_code == 404
        assert (await client.get("/docs/__init__.py")).status_code == 404
