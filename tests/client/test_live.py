"""Live search: the newest drawing is answered."""

import asyncio
from typing import Any

import pytest

from vermouth_client import AsyncClient, NoAnswer, Strokes
from vermouth_client.errors import Invalid, NotFound

pytestmark = [pytest.mark.server, pytest.mark.anyio]


def drawing(n: int) -> Strokes:
    return Strokes([[[0, 50 + n], [0, 90]]], 100, 100)


async def test_the_newest_drawing_is_answered(service: dict[str, Any]) -> None:
    async with AsyncClient(**service) as client, client.live() as live:
        await client.put_item("default", "line", drawing(1), metadata={"kind": "line"})
        searches = [live.search(drawing(n), k=3, filter={"kind": "line"}) for n in range(20)]
        answers = await asyncio.gather(*searches)
        assert answers[:-1] == [None] * 19
        assert answers[-1] is not None
        assert [one.id for one in answers[-1].results] == ["line"]
        with pytest.raises(NotFound):
            await live.search(drawing(1), gallery="none")
        with pytest.raises(Invalid):
            await live.search(Strokes([]))
        found = await live.search(drawing(1), text="line")
        assert found is not None


async def test_a_closed_connection_is_named_with_its_reason(service: dict[str, Any]) -> None:
    async with AsyncClient(**{**service, "key": "wrong"}) as client, client.live() as live:
        with pytest.raises(NoAnswer, match="4401"):
            await live.search(drawing(1))
        with pytest.raises(NoAnswer, match="4401"):
            await live.search(drawing(2))
    async with AsyncClient("http://127.0.0.1:9") as client:
        with pytest.raises(NoAnswer, match="does not answer"):
            async with client.live():
                pass
