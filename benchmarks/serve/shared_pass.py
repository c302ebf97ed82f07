"""Measure what the shared pass saves: three tasks on one image, with the caches of features and images and without.

`make bench-serve` reports it too; `python -m benchmarks.serve.shared_pass` measures it alone. Requests are built before
the clock starts, and answers are read no further than to their end: the service is timed, not the client.
"""

import argparse
import contextlib
import json
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import httpx

from benchmarks.load import jpeg
from benchmarks.server import VERMOUTH, Server, ready, server_of

# Bytes of the feature cache and of the image cache; 64 KiB keep strings, but no image with its dense map of a megabyte.
_CACHES = {"cached": (1 << 28, 1 << 28), "separate": (1 << 16, 0)}
_UNTIMED = 2  # images before the first that counts
_ITEMS = 64  # images in the gallery that is searched


def three_tasks(images: int, base: Server = VERMOUTH) -> dict[str, float]:
    """Measure retrieval, segmentation by the whole view and few-shot classification of each image in turn.

    Two services take turns, image by image, so that both see the same machine: one with its caches, and one that makes
    a pass for each task. Each begins its turn with an untimed image: the other's weights lie in the processor's caches
    then, and a service that has a machine to itself never pays for that. Of two equal services the one started first
    was up to 4 % slower, so half of the images are for either order. Class names are embedded once by each service.

    Returns:
        Medians for an image: `cached_s`, `separate_s`, their ratio `speedup`, and `repeat_s`, the same three again.
    """
    taken: dict[str, list[float]] = {"cached": [], "separate": [], "repeat": []}
    for names in (tuple(_CACHES), tuple(_CACHES)[::-1]):
        with contextlib.ExitStack() as stack:
            services = [(name, stack.enter_context(_service(base, *_CACHES[name]))) for name in names]
            for number in range(-_UNTIMED, images // 2):
                untimed, timed = jpeg(3 * 10**6 + number), jpeg(2 * 10**6 + number)
                for name, seconds_of in services if number % 2 else services[::-1]:
                    seconds_of(untimed)
                    seconds = {name: seconds_of(timed)}
                    if name == "cached":
                        seconds["repeat"] = seconds_of(timed)
                    for each in seconds if number >= 0 else ():
                        taken[each].append(seconds[each])
    ratios = (separate / cached for separate, cached in zip(taken["separate"], taken["cached"], strict=True))
    medians = {f"{name}_s": statistics.median(values) for name, values in taken.items()}
    return {**medians, "speedup": statistics.median(ratios)}


@contextlib.contextmanager
def _service(base: Server, features_bytes: int, images_bytes: int) -> Iterator[Callable[[bytes], float]]:
    """Start a service with a gallery and an episode; yield the function that times the three tasks on one image."""
    variables = {
        **base.variables,
        "VERMOUTH_FEATURE_CACHE_BYTES": str(features_bytes),
        "VERMOUTH_PICTURE_CACHE_BYTES": str(images_bytes),
        "VERMOUTH_LIMITS__MAX_TILES": "0",
    }
    with ready(replace(base, variables=variables)) as (service, client):
        items = [("image", jpeg(4 * 10**6 + number)) for number in range(_ITEMS)]
        client.post("/galleries/default/items", files=items).raise_for_status()
        ways = {"support:one": jpeg(2**32 - 1), "support:two": jpeg(2**32 - 2)}
        episode = client.post("/fewshot/episodes", files=ways).raise_for_status().json()["id"]

        def seconds_of(image: bytes) -> float:
            requests = [
                client.build_request("POST", "/retrieve", files={"sketch": image}),
                client.build_request("POST", "/segment", files={"image": image}, data={"classes": ["cat", "dog"]}),
                client.build_request("POST", f"/fewshot/episodes/{episode}/classify", files={"query": image}),
            ]
            prepared = [_bytes(request) for request in requests]
            # One for each turn: the server closes a connection that sends nothing while the other service starts.
            with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
                started_s = time.perf_counter()
                for request in prepared:
                    connection.sendall(request)
                    _receive(connection)
                return time.perf_counter() - started_s

        yield seconds_of


def _bytes(request: httpx.Request) -> bytes:
    headers = (f"{name}: {value}" for name, value in request.headers.items())
    return "\r\n".join([f"{request.method} {request.url.path} HTTP/1.1", *headers, "", ""]).encode() + request.read()


def _receive(connection: socket.socket) -> None:
    """Read one answer to its end. Raises RuntimeError if it is not a whole 200."""
    head, end, left = b"", b"", 1
    while left > 0:
        part = connection.recv(1 << 16)
        if end:
            left -= len(part)
        else:
            head, end, body = (head + part).partition(b"\r\n\r\n")
            if end:
                left = int(head.lower().partition(b"content-length:")[2].split(maxsplit=1)[0]) - len(body)
        if not part or (end and not head.startswith(b"HTTP/1.1 200")):
            raise RuntimeError(f"answered with {head!r}")


def main() -> None:
    """Print the medians as JSON, one line for each revision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--against", metavar="REVISION", help="measure another git revision too, first")
    options = parser.parse_args()
    with server_of(options.against) if options.against else contextlib.nullcontext() as other:
        for server in (other, VERMOUTH) if other else (VERMOUTH,):
            sys.stdout.write(json.dumps({"revision": server.name, **three_tasks(options.images, server)}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
