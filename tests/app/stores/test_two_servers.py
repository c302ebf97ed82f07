"""Two server processes on one PostgreSQL, over sockets: what one acknowledged, the other knows."""

import os
import random
import threading
from pathlib import Path

import httpx
import pytest

from tests.app.postgres import PostgresServer
from tests.app.stores.conftest import Report
from tests.app.stores.crash_writes import image, wire
from tests.app.test_server import started

pytestmark = pytest.mark.server
WRITES = int(os.environ.get("REPLICA_WRITES", "60"))
LIMIT_S = 900


def test_a_read_with_min_seq_on_the_other_server_always_sees_the_write(
    tmp_path: Path, postgres: PostgresServer, report: Report
) -> None:
    url = postgres.new_database()
    # They follow by themselves only once a minute: what is seen is seen because it was asked for.
    settings = {"DATABASE_URL": url, "BLOB_URL": str(tmp_path / "shared"), "FOLLOW_INTERVAL_S": "60"}
    with (
        started("free", tmp_path / "one", limit_s=LIMIT_S, **settings) as one,
        started("free", tmp_path / "other", limit_s=LIMIT_S, **settings) as other,
        one.connect() as first,
        other.connect() as second,
    ):
        one.wait_for("ready")
        other.wait_for("ready")
        failures: list[str] = []
        pairs = [(first, second), (second, first)]
        threads = [threading.Thread(target=write_and_look, args=(*pairs[at % 2], at, failures)) for at in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        states = [client.get("/galleries/default").json() for client in (first, second)]
        assert states[0] == states[1]
        assert states[0]["index"]["applied_seq"] == states[0]["index"]["head_seq"]
    postgres.drop(url)
    report(
        f"two servers on one PostgreSQL, 4 clients, {4 * (WRITES // 4)} writes and deletes over HTTP: each was seen on"
        " the other server with X-Min-Seq, and both report the same digest in the end"
    )


def write_and_look(here: httpx.Client, there: httpx.Client, number: int, failures: list[str]) -> None:
    chance = random.Random(number)
    for at in range(WRITES // 4):
        item_id = f"c{number}-{chance.randrange(5)}"
        item = f"/galleries/default/items/{item_id}"
        is_there = chance.random() < 0.7
        if is_there:
            written = here.put(item, json={"image": wire(image(chance)), "metadata": {"at": at}})
        else:
            written = here.delete(item)
        if written.status_code == 404:
            continue
        headers = {"X-Min-Seq": written.headers["x-seq"]}
        found = there.post("/retrieve", json={"text": "any", "k": 1000}, headers=headers).json()["results"]
        known = {one["id"]: one["metadata"]["at"] for one in found}
        if known.get(item_id) != (at if is_there else None):
            failures.append(f"{item_id} at write {at}: {known.get(item_id)}")
