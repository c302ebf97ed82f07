"""`kill -9` during mixed writes over a socket: nothing acknowledged is lost, nothing is half there.

A few in every run; `make prove-state` asks for hundreds (`CRASHES_SQLITE`, `CRASHES_POSTGRESQL`).
"""

import base64
import contextlib
import io
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from app.stores.blobs import Blobs
from app.stores.database import attach_database
from app.stores.index_snapshots import IndexSnapshots
from app.stores.upkeep import Upkeep
from app.stores.write_points import POINTS
from tests.app.crash_process import KILL
from tests.app.postgres import PostgresServer
from tests.app.test_server import started

pytestmark = pytest.mark.server
COMMAND = (sys.executable, "-m", "tests.app.crash_process")
CRASHES = {
    "sqlite": int(os.environ.get("CRASHES_SQLITE", "2")),
    "postgresql": int(os.environ.get("CRASHES_POSTGRESQL", "1")),
}
WRITERS = 3
IDS = 8
LIMIT_S = 60


@dataclass(slots=True)
class Told:
    """What clients were told of one id: the last acknowledged content (None: not there), and what may be in doubt.

    A write that got no answer is absent or whole, so until the next answer both are right.
    """

    sure: bytes | None = None
    doubtful: list[bytes | None] = field(default_factory=list)

    def begin(self, content: bytes | None) -> None:
        self.doubtful.append(content)

    def acknowledge(self, content: bytes | None) -> None:
        self.sure = content
        self.doubtful.clear()

    def allows(self, content: bytes | None) -> bool:
        return content == self.sure or content in self.doubtful


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database()
    yield url
    server.drop(url)


def test_kills_at_random_points_lose_nothing_acknowledged(tmp_path: Path, url: str | None) -> None:
    told = {f"w{writer}-{at}": Told() for writer in range(WRITERS) for at in range(IDS)}
    for crash in range(CRASHES["sqlite" if url is None else "postgresql"]):
        run_until_killed(tmp_path, url, told, f"random:{crash}", seed=crash)
        check(tmp_path, url, told)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_every_named_point_loses_nothing_acknowledged(tmp_path: Path, point: str) -> None:
    told = {f"w{writer}-{at}": Told() for writer in range(WRITERS) for at in range(IDS)}
    count = 1 if point.startswith("snapshot") else 2
    assert run_until_killed(tmp_path, None, told, f"{point}:{count}", seed=1) == -signal.SIGKILL
    check(tmp_path, None, told)


def run_until_killed(folder: Path, url: str | None, told: dict[str, Told], kill: str, seed: int) -> int:
    """The exit code; a process that was not killed while it wrote is asked to end, and writes its snapshots."""
    environment = {"DATABASE_URL": url} if url else {}
    os.environ[KILL] = kill
    try:
        with started("free", folder / "data", COMMAND, limit_s=LIMIT_S, **environment) as process:
            address = str(process.connect().base_url)
            process.wait_for("ready")
            threads = [
                threading.Thread(target=write_until_gone, args=(address, told, writer, seed))
                for writer in range(WRITERS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            process.signal(signal.SIGTERM)
            return process.exit_code()
    finally:
        del os.environ[KILL]


def write_until_gone(address: str, told: dict[str, Told], writer: int, seed: int) -> None:
    """Mixed writes to ids of this writer's own, until the process is dead (or enough was written)."""
    chance = random.Random(seed * 100 + writer)
    with httpx.Client(base_url=address, timeout=20) as client, contextlib.suppress(httpx.TransportError):
        for _ in range(60):
            item_id = f"w{writer}-{chance.randrange(IDS)}"
            one = told[item_id]
            url = f"/galleries/default/items/{item_id}"
            if chance.random() < 0.3:
                one.begin(None)
                assert client.delete(url).status_code in (204, 404)
                one.acknowledge(None)
            else:
                content = picture(chance)
                one.begin(content)
                body = {"image": {"base64": base64.b64encode(content).decode()}}
                assert client.put(url, json=body).status_code in (200, 201)
                one.acknowledge(content)


def check(folder: Path, url: str | None, told: dict[str, Told]) -> None:
    """Start again, and compare every item with what was acknowledged; then the store with itself."""
    environment = {"DATABASE_URL": url} if url else {}
    with started("free", folder / "data", COMMAND, limit_s=LIMIT_S, **environment) as process:
        client = process.connect()
        process.wait_for("ready")
        found = {item["id"]: item for item in client.get("/galleries/default/items?limit=1000").json()["items"]}
        for item_id, one in told.items():
            content = None if item_id not in found else client.get(found[item_id]["image_url"]).content
            assert one.allows(content), f"{item_id} is not what was acknowledged"
            one.acknowledge(content)
        searched = client.post("/retrieve", json={"text": "any", "k": 1000}).json()["results"]
        assert {one["id"] for one in searched} == found.keys()
        digest = client.get("/galleries/default").json()["index"]["digest"]
        client.close()
    database = attach_database(data_dir=folder / "data", url=url)
    blobs, snapshots = Blobs(str(folder / "data" / "blobs")), IndexSnapshots(folder / "data" / "indexes")
    upkeep = Upkeep(database, blobs, snapshots)
    assert upkeep.check(deep=True) == []
    assert upkeep.true_digests()["default"] == digest
    database.close()


def picture(chance: random.Random) -> bytes:
    pixels = np.frombuffer(chance.randbytes(12 * 12 * 3), np.uint8).reshape(12, 12, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
