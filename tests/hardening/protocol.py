"""Faults of HTTP over raw sockets against a real server: `python -m tests.hardening.protocol --count N --seed S`.

The server runs with 1,024 descriptors. It must answer nothing with a 5xx but 501, 503 and 505, keep its process, its
descriptors and its memory, and answer health within 50 ms (p99) throughout.
"""

import argparse
import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER = f"ulimit -n 1024; exec {sys.executable} -m tests.app.server_process free"
SILENT = 1010
CALLERS = 16
ALLOWED_5XX = frozenset({501, 503, 505})
MAX_HEALTH_P99_MS = 50.0
SETTLE_S = 14.0  # the grace of slow clients and two sweeps
HEAD = b"POST /embed HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
BODY = b'{"texts": ["cat"]}'
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = b"GET /openapi.json HTTP/1.1\r\nHost: test\r\n\r\n"
SOCKET_HEAD = (
    b"GET /retrieve/live HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
SMUGGLED = (
    HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Content-Length: +5\r\n\r\nhello",
    HEAD + b"X: a\r\n\tb\r\nContent-Length: 0\r\n\r\n",
    CHUNKED + b"5;\x00\r\nhello\r\n0\r\n\r\n",
    CHUNKED + b"-1\r\nhello\r\n0\r\n\r\n",
    b"GET http://other/livez HTTP/1.1\r\nHost: test\r\nHost: other\r\n\r\n",
    b"GET /livez HTTP/1.1\r\n\r\n",
)


@dataclass
class Found:
    """What the run saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    health_ms: list[float] = field(default_factory=list)
    unhealthy: int = 0


def torn(rng: random.Random) -> bytes:
    return WHOLE[: rng.randrange(1, len(WHOLE))]


def mutated(rng: random.Random) -> bytes:
    data = bytearray(rng.choice([WHOLE, LARGE, SOCKET_HEAD, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"]))
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def garbage(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 4096))


def oversized(rng: random.Random) -> bytes:
    n = rng.randrange(1 << 16, 1 << 19)
    line = rng.choice([b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nA: %b\r\n\r\n", b"%b"])
    return rng.choice([line % (b"a" * n), CHUNKED + b"1;%b\r\nx\r\n" % (b"a" * n), HEAD + b"A: b\r\n" * (n // 64)])


def smuggled(rng: random.Random) -> bytes:
    return rng.choice(SMUGGLED)


def pipelined(rng: random.Random) -> bytes:
    return rng.choice([WHOLE, LARGE, WHOLE + garbage(rng)]) * rng.randrange(2, 400)


def frames(rng: random.Random) -> bytes:
    return SOCKET_HEAD + rng.randbytes(rng.randrange(1, 512))


SENT: tuple[Callable[[random.Random], bytes], ...] = (torn, mutated, garbage, oversized, smuggled, pipelined, frames)


def close_early(connection: socket.socket, rng: random.Random) -> None:
    del rng
    connection.close()


def half_close(connection: socket.socket, rng: random.Random) -> None:
    del rng
    connection.shutdown(socket.SHUT_WR)


def reset(connection: socket.socket, rng: random.Random) -> None:
    connection.settimeout(0.05)
    with contextlib.suppress(OSError):
        connection.recv(rng.randrange(1, 4096))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def dribble(connection: socket.socket, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 20)):
        connection.sendall(b"a")
        time.sleep(0.01)


ENDS: tuple[Callable[[socket.socket, random.Random], None] | None, ...] = (
    None,
    close_early,
    half_close,
    reset,
    dribble,
)


def one_fault(port: int, seed: int, found: Found, held: list[socket.socket]) -> None:
    """Send something wrong, end the connection somehow, and note the statuses of what came back."""
    rng = random.Random(seed)
    connection = socket.create_connection(("127.0.0.1", port), timeout=0.5)
    with contextlib.suppress(OSError):
        if rng.random() < 0.06 and len(held) < 64:
            connection.sendall(LARGE * 16)
            held.append(connection)  # never reads
            return
        connection.sendall(rng.choice(SENT)(rng))
        end = rng.choice(ENDS)
        if end is not None:
            end(connection, rng)
        data = b""
        while len(data) < 1 << 20 and (part := connection.recv(65536)):
            data += part
        _note(data, found)
    connection.close()


def _note(data: bytes, found: Found) -> None:
    for part in data.split(b"HTTP/1.1 ")[1:]:
        if part[:3].isdigit():
            found.statuses[int(part[:3])] += 1


def watch_health(port: int, found: Found, is_over: threading.Event) -> None:
    """Ask for health, each time on a new connection."""
    while not is_over.wait(0.02):
        started_s = time.perf_counter()
        data = b""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            while part := connection.recv(4096):
                data += part
        found.unhealthy += not data.startswith(b"HTTP/1.1 200")
        found.health_ms.append((time.perf_counter() - started_s) * 1000)


@contextlib.contextmanager
def server(data_dir: str) -> Iterator[tuple[int, int]]:
    """The process and port of a server over a fake device."""
    environment = {"VERMOUTH_DATA_DIR": data_dir, "VERMOUTH_PORT": "0", "VERMOUTH_LOG_JSON": "1"}
    process = subprocess.Popen(
        ["/bin/sh", "-c", SERVER], cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    events = (json.loads(line)["event"] for line in process.stderr if line.startswith("{"))
    port = next(int(event.split()[3].rsplit(":", 1)[1]) for event in events if event.startswith("Uvicorn running on"))
    next(event for event in events if event == "ready")
    reader = threading.Thread(target=lambda: [None for _ in events], daemon=True)
    reader.start()
    try:
        yield process.pid, port
        assert process.poll() is None, f"the server ended with {process.returncode}"
    finally:
        process.terminate()
        process.wait(60)
        reader.join()
        process.stderr.close()


def usage(pid: int) -> tuple[float, int]:
    """Resident megabytes and open descriptors of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def run(count: int, seed: int, *, settle_s: float = SETTLE_S) -> dict[str, object]:
    """Commit the faults; the figures, of which `failures` names those out of bounds."""
    found, is_over, held = Found(), threading.Event(), list[socket.socket]()
    with tempfile.TemporaryDirectory() as data_dir, server(data_dir) as (pid, port), contextlib.ExitStack() as stack:
        # The first hundred fill caches and pools, which stay.
        with ThreadPoolExecutor(CALLERS) as callers:
            list(callers.map(lambda n: one_fault(port, -1 - n, Found(), held), range(100)))
        before_mb, before_files = usage(pid)
        watcher = threading.Thread(target=watch_health, args=(port, found, is_over))
        watcher.start()
        with ThreadPoolExecutor(CALLERS) as callers:
            list(callers.map(lambda n: one_fault(port, seed * 1_000_000 + n, found, held), range(count)))
        for _ in range(SILENT):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        time.sleep(settle_s)
        is_over.set()
        watcher.join()
        for connection in held:
            connection.close()
        stack.close()
        time.sleep(0.5)
        after_mb, after_files = usage(pid)
    p99_ms = sorted(found.health_ms)[int(0.99 * len(found.health_ms))]
    failures = {
        "statuses": [status for status in found.statuses if status >= 500 and status not in ALLOWED_5XX],
        "unhealthy": found.unhealthy,
        "health": p99_ms > MAX_HEALTH_P99_MS,
        "memory": after_mb > 1.1 * before_mb + 20,
        "descriptors": after_files > before_files + 8,
    }
    return {
        "faults": count,
        "seed": seed,
        "statuses": dict(sorted(found.statuses.items())),
        "health": {"asked": len(found.health_ms), "p99_ms": round(p99_ms, 1), "max_ms": round(max(found.health_ms), 1)},
        "memory_mb": [round(before_mb), round(after_mb)],
        "descriptors": [before_files, after_files],
        "failures": [name for name, value in failures.items() if value],
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures = run(options.count, options.seed)
    print(json.dumps(figures))  # noqa: T201 - the figures are the output
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
