"""Filters, likes, preconditions and repeats over HTTP."""

import asyncio
import contextlib
import json
import threading
import time
from typing import Any

import httpx
import pytest

from app.api.deps import Tasks
from app.errors import ResponseLost
from app.stores.sql import metadata
from app.tasks.items import MAX_WAITING_EXPORTS
from tests.app.api.images import BAR, CROSS, SQUARE, png

pytestmark = pytest.mark.anyio
ITEMS = "/galleries/default/items"


async def add(client: httpx.AsyncClient, **metadata: dict[str, object]) -> None:
    images = {"square": SQUARE, "cross": CROSS, "bar": BAR}
    body = [{"id": name, "image": images[name], "metadata": one} for name, one in metadata.items()]
    assert (await client.post(ITEMS, json=body)).status_code == 200


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json().get("results", answer.json().get("items"))]


async def test_a_filter_holds_in_search_and_in_lists(client: httpx.AsyncClient) -> None:
    await add(client, square={"n": 1, "tags": ["a"]}, cross={"n": 2, "tags": ["a", "b"]}, bar={"n": "2"})
    for where, expected in (
        ({"n": {"gte": 2}}, ["cross"]),
        ({"tags": {"any": ["a"]}}, ["cross", "square"]),
        ({"not": {"tags": {"exists": True}}}, ["bar"]),
        ({"n": 3}, []),
    ):
        found = await client.post("/retrieve", json={"sketch": SQUARE, "filter": where})
        assert sorted(ids(found)) == expected
        form = await client.post("/retrieve", files={"sketch": ("q.png", png())}, data={"filter": json.dumps(where)})
        assert sorted(ids(form)) == expected
        assert ids(await client.get(ITEMS, params={"filter": json.dumps(where)})) == expected


@pytest.mark.parametrize("where", [{}, {"a": {"near": 1}}, {"and": []}, {"a": [1]}, {"a": 2**63}], ids=str)
async def test_a_bad_filter_is_422_and_names_its_place(client: httpx.AsyncClient, where: dict[str, object]) -> None:
    for answer in (
        await client.post("/retrieve", json={"text": "x", "filter": where}),
        await client.get(ITEMS, params={"filter": json.dumps(where)}),
        await client.post(f"{ITEMS}/delete", json={"filter": where}),
    ):
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"].startswith("filter")


async def test_likes_lead_to_an_item_and_away_from_another(client: httpx.AsyncClient) -> None:
    await add(client, square={}, cross={}, bar={})
    liked = await client.post("/retrieve", json={"like": {"positive": ["bar"]}, "k": 1})
    assert ids(liked) == ["bar"]
    assert liked.json()["results"][0]["score"] == pytest.approx(1, abs=1e-5)
    away = await client.post("/retrieve", json={"sketch": SQUARE, "like": {"negative": ["cross"]}})
    assert ids(away)[-1] == "cross"
    assert (await client.post("/retrieve", json={"like": {"positive": ["gone"]}})).status_code == 404
    assert (await client.post("/retrieve", json={"like": {}})).status_code == 422
    cancelled = {"positive": ["bar"], "negative": ["bar"]}
    assert (await client.post("/retrieve", json={"like": cancelled})).status_code == 422


async def test_patch_merges_metadata_under_if_match(client: httpx.AsyncClient) -> None:
    await add(client, bar={"a": 1, "b": {"c": 1, "d": 2}})
    url = f"{ITEMS}/bar"
    tag = (await client.get(url)).headers["etag"]
    patch = {"metadata": {"a": None, "b": {"d": None, "e": 3}, "f": [1]}}
    changed = await client.patch(url, json=patch, headers={"If-Match": tag})
    assert (changed.status_code, changed.json()["metadata"]) == (200, {"b": {"c": 1, "e": 3}, "f": [1]})
    assert changed.headers["etag"] == f'"{changed.headers["x-seq"]}"' != tag
    stale = await client.patch(url, json=patch, headers={"If-Match": tag})
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition-failed")
    assert (await client.put(url, json={"image": SQUARE}, headers={"If-Match": tag})).status_code == 412
    assert (await client.delete(url, headers={"If-Match": '"x"'})).status_code == 412
    assert (await client.delete(url, headers={"If-Match": "bar"})).status_code == 400
    assert (await client.patch(f"{ITEMS}/gone", json=patch)).status_code == 404
    large = await client.patch(url, json={"metadata": {"x": "y" * 20_000}})
    assert large.status_code == 422
    assert (await client.delete(url, headers={"If-Match": "*"})).status_code == 204


@pytest.mark.parametrize(
    "metadata",
    [{"a": 2**63}, {"a": "\0"}, {"\0": 1}, {"a": json.loads("[" * 40 + "]" * 40)}],
    ids=["int", "nul", "key", "deep"],
)
async def test_metadata_no_database_could_keep_is_422(client: httpx.AsyncClient, metadata: dict[str, object]) -> None:
    answer = await client.put(f"{ITEMS}/x", json={"image": SQUARE, "metadata": metadata})
    assert answer.status_code == 422


async def test_many_are_deleted_at_once(client: httpx.AsyncClient) -> None:
    await add(client, square={"n": 1}, cross={"n": 2}, bar={"n": 3})
    some = await client.post(f"{ITEMS}/delete", json={"ids": ["square", "gone"]})
    assert some.json() == {"seq": int(some.headers["x-seq"]), "deleted": 1, "missing": ["gone"]}
    rest = await client.post(f"{ITEMS}/delete", json={"filter": {"n": {"gt": 2}}})
    assert rest.json()["deleted"] == 1
    assert ids(await client.get(ITEMS)) == ["cross"]
    wrong: list[dict[str, object]] = [{}, {"ids": ["a"], "filter": {"n": 1}}, {"ids": []}]
    for body in wrong:
        assert (await client.post(f"{ITEMS}/delete", json=body)).status_code == 422


async def test_a_caption_alone_encodes_the_stored_image_again(client: httpx.AsyncClient) -> None:
    await add(client, bar={"n": 1})
    answer = await client.put(f"{ITEMS}/bar", json={"caption": "a bar"})
    assert (answer.status_code, answer.json()["caption"], answer.json()["metadata"]) == (200, "a bar", {"n": 1})
    assert (await client.put(f"{ITEMS}/gone", json={"caption": "x"})).status_code == 404


async def test_a_caption_alone_undoes_no_write_that_comes_between(
    client: httpx.AsyncClient, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(client, bar={"n": 1})
    original = tasks.items.add

    async def add_later(*args: Any, **options: Any) -> Any:
        assert (await client.patch(f"{ITEMS}/bar", json={"metadata": {"n": 2}})).status_code == 200
        return await original(*args, **options)

    monkeypatch.setattr(tasks.items, "add", add_later)
    assert (await client.put(f"{ITEMS}/bar", json={"caption": "a bar"})).status_code == 412
    item = (await client.get(f"{ITEMS}/bar")).json()
    assert (item["metadata"], item["caption"]) == ({"n": 2}, None)
    stale = await client.put(f"{ITEMS}/bar", json={"caption": "a bar"}, headers={"If-Match": '"1"'})
    assert stale.status_code == 412


async def test_an_export_holds_every_item_with_its_vector(client: httpx.AsyncClient) -> None:
    await add(client, square={"é": 1}, cross={})
    answer = await client.get("/galleries/default/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [(row["id"], row["metadata"], len(row["vector"])) for row in rows] == [
        ("square", {"é": 1}, 16),
        ("cross", {}, 16),
    ]
    assert (await client.get("/galleries/gone/export")).status_code == 404


async def test_exports_that_wait_for_their_next_part_are_bounded(client: httpx.AsyncClient, tasks: Tasks) -> None:
    await add(client, square={})
    async with tasks.items._exporting:  # nobody gets a part
        waiting = [asyncio.create_task(client.get("/galleries/default/export")) for _ in range(MAX_WAITING_EXPORTS)]
        done, _ = await asyncio.wait(waiting, timeout=1.0)
        assert not done
        refused = await client.get("/galleries/default/export")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
    assert (await client.get("/galleries/default/export")).status_code == 200


async def test_a_write_that_is_not_waited_for_is_seen_with_min_seq(client: httpx.AsyncClient) -> None:
    written = await client.put(f"{ITEMS}/x?wait=false", json={"image": SQUARE})
    headers = {"X-Min-Seq": written.headers["x-seq"]}
    assert ids(await client.post("/retrieve", json={"sketch": SQUARE}, headers=headers)) == ["x"]
    for wrong in ("-1", "x", "1.5", "9" * 30):
        assert (await client.get(ITEMS, headers={"X-Min-Seq": wrong})).status_code == 400


async def test_a_repeated_write_is_answered_as_before_and_done_once(client: httpx.AsyncClient, tasks: Tasks) -> None:
    headers, body = {"Idempotency-Key": "k-1"}, [{"image": SQUARE}, {"image": CROSS}]
    first = await client.post(ITEMS, json=body, headers=headers)
    again = await client.post(ITEMS, json=body, headers=headers)
    assert again.content == first.content
    assert again.headers["x-seq"] == first.headers["x-seq"]
    assert (again.headers["idempotency-replayed"], tasks.stores.galleries.get("default").count) == ("true", 2)
    other = await client.post(ITEMS, json=body[:1], headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    elsewhere = await client.post(ITEMS, json=body[:1], headers={**headers, "X-API-Key": "another caller"})
    assert elsewhere.status_code == 200
    for wrong in ("", "a b", "x" * 256):
        assert (await client.post(ITEMS, json=body, headers={"Idempotency-Key": wrong})).status_code == 400


async def test_of_equal_requests_at_once_one_is_done(client: httpx.AsyncClient, tasks: Tasks) -> None:
    headers, body = {"Idempotency-Key": "k"}, [{"image": SQUARE}]
    answers = await asyncio.gather(*(client.post(ITEMS, json=body, headers=headers) for _ in range(8)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert len({answer.content for answer in answers if answer.status_code == 200}) == 1
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 409)
    assert tasks.stores.galleries.get("default").count == 1


async def test_if_match_star_needs_an_item(client: httpx.AsyncClient) -> None:
    url, headers = f"{ITEMS}/new", {"If-Match": "*"}
    refused = await client.put(url, json={"image": SQUARE}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (412, "precondition-failed")
    assert (await client.get(url)).status_code == 404
    await client.put(url, json={"image": SQUARE})
    assert (await client.put(url, json={"image": BAR}, headers=headers)).status_code == 200


async def test_a_repeated_form_has_another_boundary_and_is_known(client: httpx.AsyncClient) -> None:
    answers = [
        await client.post(ITEMS, files=[("image", ("a.png", png()))], headers={"Idempotency-Key": "k"})
        for _ in range(2)
    ]
    assert answers[0].content == answers[1].content


async def test_a_failed_write_may_be_repeated(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k"}
    assert (await client.post("/galleries/pets/items", json=[{"image": SQUARE}], headers=headers)).status_code == 404
    await client.put("/galleries/pets")
    assert (await client.post("/galleries/pets/items", json=[{"image": SQUARE}], headers=headers)).status_code == 200


def lose_answers(tasks: Tasks) -> None:
    """The process died between the write and the keeping of its answer; then it was started again."""
    with tasks.stores.database.write() as connection:
        connection.exec_driver_sql("UPDATE idempotency_keys SET status = NULL, body = NULL")
    tasks.stores.idempotency_keys.release_all()


async def test_a_repeat_after_a_crash_overwrites_nothing_newer(client: httpx.AsyncClient, tasks: Tasks) -> None:
    headers, body = {"Idempotency-Key": "k"}, [{"id": "a", "image": SQUARE}, {"image": CROSS}]
    first = await client.post(ITEMS, json=body, headers=headers)
    newer = await client.put(f"{ITEMS}/a", json={"image": BAR, "metadata": {"n": 2}})
    lose_answers(tasks)
    for _ in range(2):
        again = await client.post(ITEMS, json=body, headers=headers)
        assert (again.status_code, again.json()["code"]) == (409, "response-lost")
        assert f"seq {first.json()['seq']}" in again.json()["detail"]
    assert (await client.get(f"{ITEMS}/a")).json() == newer.json()
    assert tasks.stores.galleries.get("default").count == 2


async def test_a_repeated_delete_after_a_crash_takes_nothing_newer(client: httpx.AsyncClient, tasks: Tasks) -> None:
    await add(client, bar={"n": 1})
    headers, body = {"Idempotency-Key": "k"}, {"filter": {"n": 1}}
    first = await client.post(f"{ITEMS}/delete", json=body, headers=headers)
    assert first.json()["deleted"] == 1
    await add(client, cross={"n": 1})
    lose_answers(tasks)
    again = await client.post(f"{ITEMS}/delete", json=body, headers=headers)
    assert again.status_code == 409
    assert f"seq {first.json()['seq']}" in again.json()["detail"]
    assert ids(await client.get(ITEMS)) == ["cross"]


async def test_a_write_that_lost_its_hold_is_not_done_twice(client: httpx.AsyncClient, tasks: Tasks) -> None:
    token = tasks.stores.idempotency_keys.claim("key", "request", time.time() + 60).token
    await add(client, bar={})
    assert tasks.stores.items.remove_many("default", ids=["bar"], token=token).count == 1
    with pytest.raises(ResponseLost, match="was committed at seq"):
        tasks.stores.items.remove_many("default", ids=["bar"], token=token)


async def test_an_answer_is_stored_though_the_request_ends_first(
    client: httpx.AsyncClient, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client goes away while the answer waits for the writer's thread."""
    headers, body = {"Idempotency-Key": "k"}, [{"image": SQUARE}]
    gate, waits, original = threading.Event(), asyncio.Event(), tasks.stores.database.run_write

    async def run_write(function: Any, *args: Any, **options: Any) -> Any:
        if function == tasks.stores.idempotency_keys.store:
            tasks.stores.database._writer.submit(gate.wait, 30)
            waits.set()
        return await original(function, *args, **options)

    monkeypatch.setattr(tasks.stores.database, "run_write", run_write)
    request = asyncio.create_task(client.post(ITEMS, json=body, headers=headers))
    await waits.wait()
    request.cancel()
    gate.set()
    with contextlib.suppress(asyncio.CancelledError):
        await request
    again = await client.post(ITEMS, json=body, headers=headers)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")


async def test_another_bundles_state_is_409_and_never_mixed(client: httpx.AsyncClient, tasks: Tasks) -> None:
    await add(client, bar={})
    with tasks.stores.database.write() as connection:
        metadata.write(connection, metadata.FINGERPRINT, "e" * 64)
    await client.put("/galleries/other")
    for answer in (
        await client.post("/retrieve", json={"sketch": SQUARE}),
        await client.post(ITEMS, json=[{"image": SQUARE}]),
        await client.get("/galleries/default"),
        await client.get("/galleries/default/export"),
        await client.put("/class-sets/c", json={"classes": ["a"]}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "fingerprint-mismatch")
    assert ids(await client.get(ITEMS)) == ["bar"]
