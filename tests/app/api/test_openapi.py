"""The description of the task routes."""

import httpx
import pytest

pytestmark = pytest.mark.anyio

ROUTES = {
    ("post", "/retrieve"), ("post", "/embed"), ("post", "/segment"),
    ("get", "/galleries"), ("put", "/galleries/{name}"), ("get", "/galleries/{name}"),
    ("delete", "/galleries/{name}"), ("post", "/galleries/{name}/items"), ("get", "/galleries/{name}/items"),
    ("put", "/galleries/{name}/items/{item_id}"), ("get", "/galleries/{name}/items/{item_id}"),
    ("delete", "/galleries/{name}/items/{item_id}"), ("get", "/galleries/{name}/items/{item_id}/image"),
    ("post", "/fewshot/episodes"), ("get", "/fewshot/episodes"), ("get", "/fewshot/episodes/{episode_id}"),
    ("delete", "/fewshot/episodes/{episode_id}"), ("post", "/fewshot/episodes/{episode_id}/classify"),
    ("get", "/fewshot/episodes/{episode_id}/support/{support_id}/image"),
}  # fmt: skip


async def test_every_task_route_is_described_with_its_body_and_examples(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    found = {(method, path) for path, methods in paths.items() for method in methods}
    assert found >= ROUTES
    for method, path in ROUTES:
        operation = paths[path][method]
        assert operation["summary"]
        if method == "post":
            content = operation["requestBody"]["content"]
            assert {"application/json", "multipart/form-data"} == content.keys()
            schema = content["application/json"]["schema"]
            assert "examples" in schema.get("items", schema)


async def test_the_examples_are_accepted_by_the_service(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in ("/retrieve", "/embed", "/segment", "/fewshot/episodes"):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for example in schema["examples"]:
            answer = await client.post(path, json=example)
            assert answer.status_code in {200, 201}, answer.text


async def test_no_reference_leads_nowhere(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str):
                target: object = document
                for part in reference.removeprefix("#/").split("/"):
                    assert isinstance(target, dict)
                    target = target[part]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
