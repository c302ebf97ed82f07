"""What the shared pass saves: three tasks on one picture, with the caches of features and pictures and without.

`make bench-serve` tells it too; `python -m benchmarks.serve.shared_pass` measures it alone.

Requests are made, to the last byte, before the clock starts, and answers are read no further than to their end: what is
timed is the service.
"""

import contextlib
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from benchmarks.serve.contenders import CONTENDERS, Contender
from benchmarks.serve.images import jpeg
from benchmarks.serve.measure import running

_STRINGS_BYTES = 1 << 16
"""A feature cache of this size keeps strings and no picture: its dense map alone takes a megabyte."""
_CACHES = {"cached": (1 << 28, 1 << 28), "separate": (_STRINGS_BYTES, 0)}
"""Bytes for features and for pictures."""
_UNTIMED = 2
_ITEMS = 64
"""Of the gallery that is searched."""


def three_tasks(pictures: int, *, port: int, base: Contender = CONTENDERS[0]) -> dict[str, float]:
    """Seconds for retrieval, segmentation by the whole view and few-shot classification of each picture in turn.

    Two services answer by turns, picture by picture, so that both see the same machine: one with its caches, and one
    that makes a pass for each task. Each begins its turn with a picture that is not timed: the other's weights lie in
    the processor's caches then, and a service that has a machine to itself never pays for that. Of two equal services
    the one started first was up to 4 % slower, so half of the pictures are for either order. Class names are embedded
    once by either, as nobody would do otherwise.

    Returns:
        Medians of `cached_s` and `separate_s` a picture, of their ratio for one picture, `speedup`, and of `repeat_s`:
        the same three again.
    """
    taken: dict[str, list[float]] = {"cached": [], "separate": [], "repeat": []}
    for names in (tuple(_CACHES), tuple(_CACHES)[::-1]):
        with contextlib.ExitStack() as stack:
            services = [
                (name, stack.enter_context(_service(base, port + number, *_CACHES[name])))
                for number, name in enumerate(names)
            ]
            for number in range(-_UNTIMED, pictures // 2):
                image = jpeg(2 * 10**6 + number)
                for name, service in services if number % 2 else services[::-1]:
                    untimed, timed = service.requests(jpeg(3 * 10**6 + number)), service.requests(image)
                    service.seconds(untimed)
                    seconds = {name: service.seconds(timed)}
                    if name == "cached":
                        seconds["repeat"] = service.seconds(timed)
                    for each in seconds if number >= 0 else ():
                        taken[each].append(seconds[each])
    found = {f"{name}_s": statistics.median(values) for name, values in taken.items()}
    ratios = (separate / cached for separate, cached in zip(taken["separate"], taken["cached"], strict=True))
    return {**found, "speedup": statistics.median(ratios)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Service:
    """One that runs, and what is asked of it."""

    client: httpx.Client
    connection: socket.socket
    episode: str

    def requests(self, image: bytes) -> list[bytes]:
        """Retrieval, segmentation and classification of one picture."""
        asked = [
            self.client.build_request("POST", "/retrieve", files={"sketch": image}),
            self.client.build_request("POST", "/segment", files={"image": image}, data={"classes": ["cat", "dog"]}),
            self.client.build_request("POST", f"/fewshot/episodes/{self.episode}/classify", files={"query": image}),
        ]
        return [_bytes(request) for request in asked]

    def seconds(self, requests: Sequence[bytes]) -> float:
        """For all of them, one after another. Raises RuntimeError where one is not answered with 200."""
        started_s = time.perf_counter()
        for request in requests:
            self.connection.sendall(request)
            _receive(self.connection)
        return time.perf_counter() - started_s


@contextlib.contextmanager
def _service(base: Contender, port: int, features_bytes: int, pictures_bytes: int) -> Iterator[_Service]:
    variables = {
        **base.variables,
        "VERMOUTH_FEATURE_CACHE_BYTES": str(features_bytes),
        "VERMOUTH_PICTURE_CACHE_BYTES": str(pictures_bytes),
        "VERMOUTH_LIMITS__MAX_TILES": "0",
        "VERMOUTH_DATA_DIR": str(Path(tempfile.mkdtemp(prefix="bench-three-")) / "state"),
    }
    contender = replace(base, variables=variables)
    with running(contender, port, ""), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        wait_until_ready(client)
        items = [("image", jpeg(4 * 10**6 + number)) for number in range(_ITEMS)]
        client.post("/galleries/default/items", files=items).raise_for_status()
        ways = {"support:one": jpeg(-1 % 2**32), "support:two": jpeg(-2 % 2**32)}
        episode = client.post("/fewshot/episodes", files=ways).raise_for_status().json()["id"]
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            yield _Service(client=client, connection=connection, episode=episode)


def _bytes(request: httpx.Request) -> bytes:
    lines = [
        f"{request.method} {request.url.path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in request.headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + request.read()


def _receive(connection: socket.socket) -> None:
    """Read one answer to its end. Raises RuntimeError where it is not a 200."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += _some(connection)
    head, _, body = found.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"answered with {head!r}")
    left = int(head.lower().partition(b"content-length:")[2].split(maxsplit=1)[0]) - len(body)
    while left > 0:
        left -= len(_some(connection))


def _some(connection: socket.socket) -> bytes:
    found = connection.recv(1 << 16)
    if not found:
        raise RuntimeError("the service closed the connection")
    return found


def wait_until_ready(client: httpx.Client) -> None:
    """Returns once the service is ready.

    Raises:
        RuntimeError: not within two minutes.
    """
    for _ in range(240):
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError("the service did not start")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(three_tasks(60, port=8790)) + "\n")
