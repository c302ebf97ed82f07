"""Episodes that change: support added and taken away, versions, methods, reports, repeats."""

import json

import httpx
import numpy as np
import pytest

from app.api.deps import Tasks
from app.errors import Invalid
from app.imaging.decoding import PixelBudget
from app.imaging.sources import EncodedImage
from app.stores.records.episodes import NewSupport, NewWay
from app.tasks.fewshot import EpisodeRequest, WayRequest
from tests.app.api.images import BAR, CROSS, SQUARE, png

pytestmark = pytest.mark.anyio
WAYS = [{"label": "square", "support": [SQUARE, SQUARE]}, {"label": "cross", "support": [CROSS]}]
MORE = {"ways": [{"label": "cross", "support": [CROSS]}, {"label": "bar", "support": [BAR]}]}


async def create(client: httpx.AsyncClient, **options: object) -> dict[str, object]:
    answer = await client.post("/fewshot/episodes", json={"ways": WAYS, **options})
    assert answer.status_code == 201, answer.text
    body: dict[str, object] = answer.json()
    return body


async def test_support_is_added_and_taken_away_under_if_match(client: httpx.AsyncClient) -> None:
    url = f"/fewshot/episodes/{(await create(client))['id']}"
    added = await client.post(f"{url}/support", json=MORE, headers={"If-Match": '"1"'})
    assert (added.status_code, added.headers["etag"], added.json()["version"]) == (200, '"2"', 2)
    assert [(way["label"], way["shots"]) for way in added.json()["ways"]] == [("square", 2), ("cross", 2), ("bar", 1)]
    classified = await client.post(f"{url}/classify", json={"queries": [BAR]})
    assert (classified.json()["version"], classified.json()["predictions"][0]["label"]) == (2, "bar")
    support = f"{url}/support/{added.json()['ways'][0]['support'][0]['id']}"
    last = f"{url}/support/{added.json()['ways'][2]['support'][0]['id']}"
    assert (await client.delete(support, headers={"If-Match": '"1"'})).status_code == 412
    removed = await client.delete(support, headers={"If-Match": '"2"'})
    assert (removed.status_code, removed.json()["ways"][0]["shots"], removed.headers["etag"]) == (200, 1, '"3"')
    assert (await client.delete(last, headers={"If-Match": '"3"'})).status_code == 409
    assert (await client.delete(support, headers={"If-Match": '"3"'})).status_code == 404


async def test_a_way_is_removed_and_the_others_keep_their_support(client: httpx.AsyncClient) -> None:
    url = f"/fewshot/episodes/{(await create(client))['id']}"
    before = (await client.post(f"{url}/support", json=MORE, headers={"If-Match": '"1"'})).json()["ways"]
    only = before[2]["support"][0]["id"]
    refused = await client.delete(f"{url}/support/{only}", headers={"If-Match": '"2"'})
    assert (refused.status_code, f"DELETE {url}/ways/bar" in refused.json()["detail"]) == (409, True)
    assert (await client.delete(f"{url}/ways/none", headers={"If-Match": '"2"'})).status_code == 404
    assert (await client.delete(f"{url}/ways/square", headers={"If-Match": '"1"'})).status_code == 412
    assert (await client.delete(f"{url}/ways/square")).status_code == 428
    removed = await client.delete(f"{url}/ways/square", headers={"If-Match": '"2"'})
    assert (removed.status_code, removed.headers["etag"], removed.json()["ways"]) == (200, '"3"', before[1:])
    assert "x-seq" in removed.headers
    found = (await client.post(f"{url}/classify", json={"queries": [BAR, CROSS]})).json()["predictions"]
    assert [one["label"] for one in found] == ["bar", "cross"]
    last = await client.delete(f"{url}/ways/bar", headers={"If-Match": '"3"'})
    assert (last.status_code, "two" in last.json()["detail"] or "2" in last.json()["detail"]) == (409, True)
    # Support that is added afterwards goes to the way of its label.
    more = await client.post(f"{url}/support", json=MORE, headers={"If-Match": '"3"'})
    assert [(way["label"], way["shots"]) for way in more.json()["ways"]] == [("cross", 3), ("bar", 2)]


async def test_name_method_and_labels_change_and_nothing_is_encoded(client: httpx.AsyncClient) -> None:
    url = f"/fewshot/episodes/{(await create(client, name='old'))['id']}"
    swapped = {"labels": {"square": "cross", "cross": "square"}, "name": "new", "method": "ridge"}
    answer = await client.patch(url, json=swapped, headers={"If-Match": '"1"'})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
    body = answer.json()
    assert (body["name"], body["method"], [way["label"] for way in body["ways"]]) == (
        "new",
        "ridge",
        ["cross", "square"],
    )
    found = (await client.post(f"{url}/classify", json={"queries": [CROSS]})).json()["predictions"]
    assert found[0]["label"] == "square"
    answer = await client.patch(url, json={"name": None}, headers={"If-Match": '"2"'})
    assert (answer.json()["name"], answer.json()["method"]) == (None, "ridge")
    for change, status in (
        ({"labels": {"square": "cross"}}, 409),
        ({"labels": {"none": "a"}}, 404),
        ({"labels": {"square": "a\n"}}, 422),
        ({"labels": {}}, 422),
        ({"method": None}, 422),
        ({"method": "magic"}, 422),
        ({}, 422),
    ):
        answer = await client.patch(url, json=change, headers={"If-Match": '"3"'})
        assert answer.status_code == status, (change, answer.text)
    assert (await client.patch(url, json={"name": "a"}, headers={"If-Match": '"2"'})).status_code == 412
    assert (await client.patch(url, json={"name": "a"})).status_code == 428


COMPOSED, SEPARATE = "caf\u00e9", "cafe\u0301"


async def test_a_label_is_one_in_every_unicode_form_and_with_spaces_around_it(client: httpx.AsyncClient) -> None:
    for one, other, status in (
        (COMPOSED, SEPARATE, 422),
        ("a", " a\u3000", 422),
        ("Cat", "cat", 201),
        ("m²", "m2", 201),
    ):
        ways = [{"label": one, "support": [BAR]}, {"label": other, "support": [CROSS]}]
        answer = await client.post("/fewshot/episodes", json={"ways": ways})
        assert answer.status_code == status, answer.text
        if status == 201:
            assert [way["label"] for way in answer.json()["ways"]] == [one, other]
    # Of a form's parts they are one way, under the spelling that came first.
    names = [SEPARATE, "bar", COMPOSED, f" {COMPOSED} "]
    files = [("support", (f"{at}.png", png(colour=(at, 0, 0)))) for at in range(4)]
    created = await client.post("/fewshot/episodes", files=files, data={"options": json.dumps({"labels": names})})
    assert [(way["label"], way["shots"]) for way in created.json()["ways"]] == [(SEPARATE, 3), ("bar", 1)]
    url = created.headers["location"]

    async def changed(method: str, path: str, status: int, body: object = None) -> list[tuple[str, int]]:
        answer = await client.request(method, f"{url}{path}", json=body, headers={"If-Match": "*"})
        assert answer.status_code == status, answer.text
        return [(way["label"], way["shots"]) for way in answer.json().get("ways", [])]

    more = {"ways": [{"label": f"{COMPOSED} ", "support": [BAR]}, {"label": "c", "support": [BAR]}]}
    assert await changed("POST", "/support", 200, more) == [(SEPARATE, 4), ("bar", 1), ("c", 1)]
    await changed("PATCH", "", 409, {"labels": {"bar": COMPOSED}})
    await changed("PATCH", "", 409, {"labels": {COMPOSED: "x", SEPARATE: "y"}})
    await changed("PATCH", "", 422, {"labels": {"bar": "\u3000"}})
    assert await changed("PATCH", "", 200, {"labels": {SEPARATE: COMPOSED}}) == [(COMPOSED, 4), ("bar", 1), ("c", 1)]
    assert await changed("DELETE", f"/ways/{SEPARATE}", 200) == [("bar", 1), ("c", 1)]


async def test_an_episode_of_before_may_have_two_spellings_of_one_label(
    client: httpx.AsyncClient, tasks: Tasks
) -> None:
    example = NewSupport(data=png(), media_type="image/png", vector=np.eye(16, dtype=np.float32)[0])
    ways = [NewWay(label=label, support=[example]) for label in (COMPOSED, SEPARATE, "a")]
    _, episode = tasks.stores.episodes.create(ways, name=None, method="prototype", ttl_s=None)
    url, headers = f"/fewshot/episodes/{episode.id}", {"If-Match": "*"}
    assert (await client.patch(url, json={"name": "n"}, headers=headers)).status_code == 200
    answer = await client.delete(f"{url}/ways/{SEPARATE}", headers=headers)
    assert [way["label"] for way in answer.json()["ways"]] == [COMPOSED, "a"]


async def test_an_episode_is_deleted_at_the_version_of_if_match(client: httpx.AsyncClient) -> None:
    url = f"/fewshot/episodes/{(await create(client))['id']}"
    assert (await client.post(f"{url}/support", json=MORE, headers={"If-Match": '"1"'})).status_code == 200
    refused = await client.delete(url, headers={"If-Match": '"1"'})
    assert (refused.status_code, refused.json()["code"]) == (412, "precondition-failed")
    assert (await client.get(url)).status_code == 200
    assert (await client.delete(url, headers={"If-Match": '"2"'})).status_code == 204


async def test_a_change_without_if_match_is_428(client: httpx.AsyncClient) -> None:
    url = f"/fewshot/episodes/{(await create(client))['id']}"
    for answer in (await client.post(f"{url}/support", json=MORE), await client.delete(f"{url}/support/s_{'0' * 16}")):
        assert (answer.status_code, answer.json()["code"]) == (428, "precondition-required")
    assert (await client.get(url)).json()["version"] == 1


@pytest.mark.parametrize(
    "body",
    [{"ways": []}, {"ways": [{"label": "a", "support": []}]}, {"ways": [MORE["ways"][0], MORE["ways"][0]]}, {}],
    ids=["none", "empty", "equal", "no-ways"],
)
async def test_bad_support_is_422(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    url = f"/fewshot/episodes/{(await create(client))['id']}/support"
    assert (await client.post(url, json=body, headers={"If-Match": "*"})).status_code == 422


async def test_a_stored_method_that_this_release_lacks_is_an_error(client: httpx.AsyncClient, tasks: Tasks) -> None:
    example = NewSupport(data=png(), media_type="image/png", vector=np.eye(16, dtype=np.float32)[0])
    ways = [NewWay(label=label, support=[example, example]) for label in ("a", "b")]
    _, episode = tasks.stores.episodes.create(ways, name=None, method="svm", ttl_s=None)
    url = f"/fewshot/episodes/{episode.id}"
    # One such episode does not hide the others of its page.
    (entry,) = (await client.get("/fewshot/episodes")).json()["episodes"]
    assert (entry["id"], entry["method"]) == (episode.id, "svm")
    for answer in (await client.get(url), await client.post(f"{url}/classify", json={"queries": [BAR]})):
        assert (answer.status_code, answer.json()["code"]) == (500, "damaged")
        assert "svm" in answer.json()["detail"]
    assert (await client.delete(url)).status_code == 204


async def test_an_episode_of_an_unknown_method_is_not_stored(tasks: Tasks) -> None:
    ways = [WayRequest(label=label, support=[EncodedImage(data=png())]) for label in ("a", "b")]
    request = EpisodeRequest(
        name=None,
        method="svm",  # type: ignore[arg-type]  # what is tested
        ways=ways,
        queries=[],
        top_k=None,
        abstain_below=None,
        ttl_s=None,
    )
    with pytest.raises(Invalid, match="svm"):
        await tasks.fewshot.create(request, PixelBudget(max_pixels=1 << 20, max_images=9))
    assert tasks.stores.episodes.all(after=None, limit=10) == []


async def test_support_comes_as_a_form_too(client: httpx.AsyncClient) -> None:
    url = f"/fewshot/episodes/{(await create(client))['id']}/support"
    files = [("support:cross", ("a.png", png())), ("support", ("b.png", png(colour=(0, 200, 0))))]
    data = {"options": json.dumps({"labels": ["green"]})}
    answer = await client.post(url, files=files, data=data, headers={"If-Match": "*"})
    assert [(way["label"], way["shots"]) for way in answer.json()["ways"]] == [
        ("square", 2),
        ("cross", 2),
        ("green", 1),
    ]
    bad = await client.post(url, files=[("support:x", ("a.png", b"text"))], headers={"If-Match": "*"})
    assert bad.status_code == 400


@pytest.mark.parametrize("method", ["prototype", "ridge", "cache"])
async def test_every_method_classifies_and_reports(client: httpx.AsyncClient, method: str) -> None:
    episode = await create(client, method=method, queries=[CROSS, SQUARE], top_k=2)
    assert episode["method"] == method
    predictions = episode["predictions"]
    assert isinstance(predictions, list)
    assert [one["label"] for one in predictions] == ["cross", "square"]
    assert sum(score["probability"] for score in predictions[0]["scores"]) == pytest.approx(1, abs=1e-5)
    report = (await client.get(f"/fewshot/episodes/{episode['id']}")).json()["leave_one_out"]
    assert report == episode["leave_one_out"]
    # The way of a single example cannot be left one out.
    assert report["confusion"] == {"square": {"square": 2}}
    assert report["accuracy"] == 1
    assert report["ci95"] == pytest.approx([0.342, 1.0], abs=1e-3)


async def test_no_way_with_two_examples_leaves_no_report(client: httpx.AsyncClient) -> None:
    single = [{"label": "square", "support": [SQUARE]}, {"label": "cross", "support": [CROSS]}]
    assert (await create(client, ways=single))["leave_one_out"] is None


async def test_a_repeat_makes_one_episode_and_one_addition(client: httpx.AsyncClient, tasks: Tasks) -> None:
    headers = {"Idempotency-Key": "new"}
    first = await client.post("/fewshot/episodes", json={"ways": WAYS}, headers=headers)
    again = await client.post("/fewshot/episodes", json={"ways": WAYS}, headers=headers)
    assert again.content == first.content
    assert again.headers["location"] == first.headers["location"]
    url = f"{first.headers['location']}/support"
    headers = {"Idempotency-Key": "more", "If-Match": '"1"'}
    added = [await client.post(url, json=MORE, headers=headers) for _ in range(2)]
    assert added[0].content == added[1].content
    with tasks.stores.database.write() as connection:
        connection.exec_driver_sql("UPDATE idempotency_keys SET status = NULL, held_until = 0")
    after_a_crash = await client.post(url, json=MORE, headers=headers)
    assert after_a_crash.json() == added[0].json()
    assert len(tasks.stores.episodes.all(after=None, limit=10)) == 1
    tasks.stores.episodes.delete(first.json()["id"])
    deleted = await client.post("/fewshot/episodes", json={"ways": WAYS}, headers={"Idempotency-Key": "new"})
    assert (deleted.status_code, tasks.stores.episodes.all(after=None, limit=10)) == (409, [])


async def test_what_is_written_is_answered_as_done_though_no_worker_is_free(
    client: httpx.AsyncClient, tasks: Tasks
) -> None:
    workers = tasks.fewshot._workers
    url = f"/fewshot/episodes/{(await create(client, method='ridge'))['id']}"
    room, workers._max_pending = workers._max_pending, 0
    # Queries are answered before anything is written, so that a refusal is one.
    refused = await client.post("/fewshot/episodes", json={"ways": WAYS, "method": "ridge", "queries": [CROSS]})
    assert refused.status_code == 429
    assert (await client.get("/fewshot/episodes")).json()["total"] == 1
    created = await create(client)
    added = await client.post(f"{url}/support", json=MORE, headers={"If-Match": '"1"'})
    support = f"{url}/support/{added.json()['ways'][0]['support'][0]['id']}"
    removed = await client.delete(support, headers={"If-Match": '"2"'})
    way = await client.delete(f"{url}/ways/bar", headers={"If-Match": '"3"'})
    renamed = await client.patch(url, json={"name": "new"}, headers={"If-Match": '"4"'})
    answers = [added, removed, way, renamed]
    assert [(one.status_code, one.headers["etag"]) for one in answers] == [(200, f'"{n}"') for n in range(2, 6)]
    assert [created["leave_one_out"], *(one.json()["leave_one_out"] for one in answers)] == [None] * 5
    assert (await client.get(url)).status_code == 429
    workers._max_pending = room
    assert (await client.get(url)).json()["leave_one_out"] is not None
