"""`X-Min-Seq`: what will never come is refused at once, and reads that wait hold nothing that others need."""

import asyncio
from pathlib import Path

import httpx
import pytest

from app.api.deps import Platform, Tasks
from app.main import create_app
from app.settings import Settings
from app.stores.sql import change_log
from tests.app.api.conftest import build_services

pytestmark = pytest.mark.anyio
ITEMS = "/galleries/default/items"


async def test_a_write_that_does_not_exist_is_refused_at_once(client: httpx.AsyncClient) -> None:
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    head = (await client.get("/galleries/default")).json()["index"]["head_seq"]
    asked = [client.get(ITEMS, headers={"X-Min-Seq": "999999999"}) for _ in range(128)]
    for answer in await asyncio.gather(*asked):
        assert (answer.status_code, answer.json()["code"]) in {(409, "conflict"), (429, "queue-full")}
        assert answer.status_code == 429 or f"the last one is {head}" in answer.json()["detail"]
    assert loop.time() - started_s < 3
    assert (await client.get(ITEMS, headers={"X-Min-Seq": str(head)})).status_code == 200


async def test_few_reads_wait_and_none_of_them_holds_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(data_dir=tmp_path / "data", max_in_flight=32), build_services)
    async with app.router.lifespan_context(app):
        await app.state.supervisor.settled()
        platform: Platform = app.state.platform
        assert platform.services is not None
        assert platform.services.tasks is not None
        tasks: Tasks = platform.services.tasks
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            nudge = tasks.stores.indexes.nudge
            monkeypatch.setattr(tasks.stores.indexes, "nudge", lambda: None)  # the index lags
            with tasks.stores.database.write() as connection:
                seq = change_log.append(connection, "class-set.put", "none")
            headers = {"X-Min-Seq": str(seq)}
            waiting = [asyncio.create_task(client.get(ITEMS, headers=headers)) for _ in range(8)]
            await asyncio.sleep(0.1)
            more = await client.get(ITEMS, headers=headers)
            assert (more.status_code, more.json()["code"], more.headers["retry-after"]) == (429, "queue-full", "1")
            assert tasks.stores.database._pending == 0
            assert (await client.get(ITEMS)).status_code == 200
            late = await client.get(ITEMS, headers={**headers, "X-Request-Timeout-Ms": "50"})
            assert late.status_code == 429
            nudge()
            assert {(await one).status_code for one in waiting} == {200}
            assert (await client.get(ITEMS, headers=headers)).status_code == 200


async def test_a_wait_ends_before_the_deadline(
    client: httpx.AsyncClient, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.stores.indexes, "nudge", lambda: None)
    with tasks.stores.database.write() as connection:
        seq = change_log.append(connection, "class-set.put", "none")
    late = await client.get(ITEMS, headers={"X-Min-Seq": str(seq), "X-Request-Timeout-Ms": "200"})
    assert (late.status_code, late.json()["code"], late.headers["retry-after"]) == (504, "deadline-exceeded", "1")
