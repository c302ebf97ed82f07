"""What the shared pass saves: three tasks on one picture, with the caches of features and pictures and without.

`make bench-serve` tells it too; `python -m benchmarks.serve.shared_pass` measures it alone.

Requests are made before the clock starts and sent by the lean client of the standard library: what is timed is the
service.
"""

import contextlib
import http.client
import json
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
_UNTIMED = 2
_ITEMS = 64
"""Of the gallery that is searched."""


def three_tasks(pictures: int, *, port: int, base: Contender = CONTENDERS[0]) -> dict[str, float]:
    """Seconds for retrieval, segmentation by the whole view and few-shot classification of each picture in turn.

    Two services answer by turns, picture by picture, so that both see the same machine: one with its caches, and one
    that makes a pass for each task. Each begins its turn with a picture that is not timed: the other's weights lie in
    the processor's caches then, and a service that has a machine to itself never pays for that. Class names are
    embedded once by either, as nobody would do otherwise.

    Returns:
        Medians of `cached_s` and `separate_s` a picture, their ratio `speedup`, and `repeat_s`: the same three again.
    """
    seconds: dict[str, list[float]] = {"cached": [], "separate": [], "repeat": []}
    with contextlib.ExitStack() as stack:
        services = {
            name: stack.enter_context(_service(base, port + number, features_bytes, pictures_bytes))
            for number, (name, features_bytes, pictures_bytes) in enumerate(
                (("cached", 1 << 28, 1 << 28), ("separate", _STRINGS_BYTES, 0))
            )
        }
        for number in range(-_UNTIMED, pictures):
            image = jpeg(2 * 10**6 + number)
            names = list(services) if number % 2 else list(services)[::-1]
            for name in names:
                service = services[name]
                warm_up = _three(service.client, service.episode, jpeg(3 * 10**6 + number))
                _seconds(service.lean, warm_up)
                taken_s = _seconds(service.lean, _three(service.client, service.episode, image))
                if number >= 0:
                    seconds[name].append(taken_s)
            cached = services["cached"]
            if number >= 0:
                seconds["repeat"].append(_seconds(cached.lean, _three(cached.client, cached.episode, image)))
    found = {f"{name}_s": statistics.median(taken) for name, taken in seconds.items()}
    return {**found, "speedup": found["separate_s"] / found["cached_s"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Service:
    """One that runs, and what is asked of it."""

    client: httpx.Client
    lean: http.client.HTTPConnection
    episode: str


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
        lean = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(lean):
            yield _Service(client=client, lean=lean, episode=episode)


def _three(client: httpx.Client, episode: str, image: bytes) -> list[httpx.Request]:
    """Retrieval, segmentation and classification of one picture, ready to be sent."""
    asked = [
        client.build_request("POST", "/retrieve", files={"sketch": image}),
        client.build_request("POST", "/segment", files={"image": image}, data={"classes": ["cat", "dog"]}),
        client.build_request("POST", f"/fewshot/episodes/{episode}/classify", files={"query": image}),
    ]
    for request in asked:
        request.read()
    return asked


def _seconds(connection: http.client.HTTPConnection, asked: Sequence[httpx.Request]) -> float:
    """For all of them, one after another.

    Raises:
        RuntimeError: one was not answered with 200.
    """
    started_s = time.perf_counter()
    for request in asked:
        connection.request(request.method, request.url.path, body=request.content, headers=dict(request.headers))
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{request.url.path} was answered with {answer.status}")
    return time.perf_counter() - started_s


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
