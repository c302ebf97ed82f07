"""`offset` and `total` of a search, totals of lists, and facets."""

import httpx
import pytest

from tests.app.api.images import BAR, CROSS, SQUARE

pytestmark = pytest.mark.anyio


@pytest.fixture
async def filled(client: httpx.AsyncClient) -> httpx.AsyncClient:
    drawings = [SQUARE, CROSS, BAR]
    items = [{"id": f"i{n}", "image": drawings[n % 3], "metadata": {"n": n, "kind": "ab"[n % 2]}} for n in range(9)]
    answer = await client.post("/galleries/default/items", json=items)
    assert answer.status_code == 200
    return client


async def test_offsets_page_through_the_results_of_one_search(filled: httpx.AsyncClient) -> None:
    async def found(**fields: object) -> list[str]:
        answer = await filled.post("/retrieve", json={"sketch": SQUARE, **fields})
        assert answer.status_code == 200, answer.text
        assert answer.json()["total"] == (5 if "filter" in fields else 9)
        return [one["id"] for one in answer.json()["results"]]

    everything = await found(k=100)
    assert len(everything) == 9
    assert [one for offset in range(0, 12, 2) for one in await found(k=2, offset=offset)] == everything
    assert await found(offset=10_000) == []
    some = await found(k=100, filter={"kind": "a"})
    assert [one for offset in (0, 3) for one in await found(k=3, offset=offset, filter={"kind": "a"})] == some
    form = await filled.post("/retrieve", files={"text": (None, "a"), "offset": (None, "8")})
    assert (len(form.json()["results"]), form.json()["total"]) == (1, 9)
    await filled.delete("/galleries/default/items/i0")
    assert (await filled.post("/retrieve", json={"text": "a", "filter": {"kind": "a"}})).json()["total"] == 4
    for bad in (-1, 10_001, 1.5, "1"):
        assert (await filled.post("/retrieve", json={"text": "a", "offset": bad})).status_code == 422


async def test_lists_say_how_many_there_are(filled: httpx.AsyncClient) -> None:
    await filled.put("/class-sets/c", json={"classes": ["a"]})
    way = {"support": [BAR]}
    await filled.post("/fewshot/episodes", json={"ways": [{"label": "a", **way}, {"label": "b", **way}]})
    for path, total in (
        ("/galleries", 1),
        ("/class-sets", 1),
        ("/fewshot/episodes", 1),
        ("/galleries/default/items?limit=2", 9),
        ("/galleries/default/items?limit=2&cursor=i3", 9),
        ('/galleries/default/items?filter={"n":{"lt":3}}', 3),
    ):
        assert (await filled.get(path)).json()["total"] == total, path


async def test_facets_count_the_values_of_a_field(filled: httpx.AsyncClient) -> None:
    answer = await filled.get("/galleries/default/facets", params={"field": "kind"})
    assert answer.json() == {
        "gallery": "default",
        "field": "kind",
        "facets": [{"value": "a", "count": 5}, {"value": "b", "count": 4}],
        "total": 2,
    }
    one = (await filled.get("/galleries/default/facets?field=n&limit=1")).json()
    assert (len(one["facets"]), one["total"]) == (1, 9)
    assert (await filled.get("/galleries/default/facets?field=none")).json()["facets"] == []
    for bad in ("", "?field=", "?field=a&limit=0", "?field=a%00b", "?fields=a"):
        assert (await filled.get(f"/galleries/default/facets{bad}")).status_code == 422, bad
    assert (await filled.get("/galleries/none/facets?field=a")).status_code == 404
