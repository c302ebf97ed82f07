"""Writes through kills and overload: none lost, none done twice. `make prove-client` runs 10,000."""

import itertools
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.app.test_server import started
from vermouth_client import Client, NewItem, Strokes
from vermouth_client.errors import ResponseLost

pytestmark = pytest.mark.server
CALLS = int(os.environ.get("CLIENT_CALLS", "60"))
KILLS = max(2, CALLS // 500)
LIMIT_S = 120 + 1.0 * CALLS
BATCH = 4


def test_writes_through_kills_are_all_done_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done: Counter[str] = Counter()
    numbers = itertools.count()
    reached = [threading.Event() for _ in range(KILLS + 1)]

    def write(client: Client) -> None:
        while (number := next(numbers)) < CALLS:
            try:
                # Without an id: a repeat that the server does not know would add a second item.
                drawing = Strokes([[[0, 50 + number % 50], [number % 70, 90]]], 100, 100)
                client.add_items("default", [NewItem(drawing, metadata={"n": number})])
                done["answered"] += 1
            except ResponseLost:
                done["lost"] += 1  # only the answer
            reached[number * (KILLS + 1) // CALLS].set()

    def source() -> Iterator[NewItem]:
        """Two batches between any two kills, so that the import runs through all of them."""
        for part, event in enumerate(reached):
            event.wait(LIMIT_S)
            for number in range(2 * BATCH * part, 2 * BATCH * (part + 1)):
                yield NewItem(Strokes([[[0, 50], [0, number % 90]]], 100, 100), f"i{number}", {"n": CALLS + number})

    with Client(f"http://127.0.0.1:{port}", timeout_s=20, retry_s=LIMIT_S) as client, ThreadPoolExecutor(9) as pool:
        writers = [pool.submit(write, client) for _ in range(8)]
        imported = pool.submit(client.import_items, "default", source(), batch=BATCH)
        for part, event in enumerate(reached):
            with started("free", tmp_path, limit_s=LIMIT_S, PORT=str(port), MAX_IN_FLIGHT="4") as process:
                process.wait_for("ready")
                event.wait(LIMIT_S)
                if part < KILLS:
                    process.signal(signal.SIGKILL)
                    continue
                for writer in writers:
                    writer.result()
                report = imported.result()
                items = [client.items("default", limit=1000)]
                while (cursor := items[-1].next_cursor) is not None:
                    items.append(client.items("default", limit=1000, cursor=cursor))
    found = Counter(item.metadata["n"] for page in items for item in page.items)
    assert done.total() == CALLS
    assert (report.added, report.rejected) == (2 * BATCH * len(reached), [])
    assert found == Counter(range(CALLS + report.added))
