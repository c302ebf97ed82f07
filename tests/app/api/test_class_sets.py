"""Class sets and jobs over HTTP."""

import httpx
import pytest

from app.api.deps import Tasks
from tests.app.api.images import SQUARE

pytestmark = pytest.mark.anyio
CLASSES = ["house", {"name": "sky", "synonyms": ["air"], "templates": ["a {}"]}]


async def test_a_class_set_is_stored_and_segments_as_its_classes_do(client: httpx.AsyncClient) -> None:
    created = await client.put("/class-sets/scene", json={"classes": CLASSES})
    assert (created.status_code, created.headers["etag"], int(created.headers["x-seq"]) > 0) == (201, '"1"', True)
    stored = (await client.get("/class-sets/scene")).json()
    assert stored["classes"][1] == {"name": "sky", "synonyms": ["air"], "templates": ["a {}"]}
    by_name = (await client.post("/segment", json={"image": SQUARE, "class_set": "scene"})).json()
    by_list = (await client.post("/segment", json={"image": SQUARE, "classes": CLASSES})).json()
    assert by_name["classes"] == by_list["classes"]
    listed = (await client.get("/class-sets")).json()
    assert listed == {"class_sets": [{"name": "scene", "version": 1, "count": 2}], "total": 1}


async def test_it_is_replaced_under_if_match_and_deleted(client: httpx.AsyncClient) -> None:
    await client.put("/class-sets/scene", json={"classes": ["a"]})
    changed = await client.put("/class-sets/scene", json={"classes": ["b"]}, headers={"If-Match": '"1"'})
    assert (changed.status_code, changed.json()["version"]) == (200, 2)
    assert (
        await client.put("/class-sets/scene", json={"classes": ["c"]}, headers={"If-Match": '"1"'})
    ).status_code == 412
    assert (await client.delete("/class-sets/scene", headers={"If-Match": '"1"'})).status_code == 412
    assert (await client.delete("/class-sets/scene")).status_code == 204
    for answer in (
        await client.get("/class-sets/scene"),
        await client.delete("/class-sets/scene"),
        await client.post("/segment", json={"image": SQUARE, "class_set": "scene"}),
    ):
        assert answer.status_code == 404


@pytest.mark.parametrize(
    "classes", [[], ["a", "A "], [{"name": "a", "templates": ["no place"]}], [""], ["x"] * 300], ids=str
)
async def test_bad_classes_are_422(client: httpx.AsyncClient, classes: list[object]) -> None:
    assert (await client.put("/class-sets/scene", json={"classes": classes})).status_code == 422
    assert (await client.get("/class-sets/scene")).status_code == 404


async def test_exactly_one_of_classes_and_class_set(client: httpx.AsyncClient) -> None:
    await client.put("/class-sets/scene", json={"classes": ["a"]})
    for body in ({"image": SQUARE}, {"image": SQUARE, "classes": ["a"], "class_set": "scene"}):
        assert (await client.post("/segment", json=body)).status_code == 422


async def test_a_job_is_reported_cancelled_and_deleted(client: httpx.AsyncClient, tasks: Tasks) -> None:
    job = tasks.stores.jobs.begin("reembed", 10)
    assert tasks.stores.jobs.advance(job.id, 4)
    report = (await client.get(f"/jobs/{job.id}")).json()
    assert (report["state"], report["done"], report["total"]) == ("running", 4, 10)
    assert (await client.delete(f"/jobs/{job.id}")).status_code == 204
    assert not tasks.stores.jobs.advance(job.id, 5)
    tasks.stores.jobs.finish(job.id, report={})
    assert (await client.get(f"/jobs/{job.id}")).json()["state"] == "cancelled"
    assert (await client.delete(f"/jobs/{job.id}")).status_code == 204
    assert (await client.get(f"/jobs/{job.id}")).status_code == 404
