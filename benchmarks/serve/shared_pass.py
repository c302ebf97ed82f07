"""What the shared pass saves: three tasks on one picture, with the caches of features and pictures and without.

Requests are made before the clock starts and sent by the lean client of the standard library: what is timed is the
service.
"""

import http.client
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx

from benchmarks.serve.contenders import CONTENDERS, Contender
from benchmarks.serve.images import jpeg
from benchmarks.serve.measure import running


def three_tasks(pictures: int, *, port: int, base: Contender = CONTENDERS[0]) -> dict[str, float]:
    """Seconds for retrieval, segmentation by the whole view and few-shot classification of each picture in turn.

    Returns:
        `cached_s` and `separate_s` a picture, and their ratio `speedup`; `repeat_s` for the same three again.
    """
    found: dict[str, float] = {}
    for name, features_bytes, pictures_bytes in (("cached", 1 << 28, 1 << 26), ("separate", 0, 0)):
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
            ways = {"support:one": jpeg(-1 % 2**32), "support:two": jpeg(-2 % 2**32)}
            episode = client.post("/fewshot/episodes", files=ways).raise_for_status().json()["id"]
            lean = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            _seconds(lean, _three(client, episode, jpeg(10**6)))
            asked = [_three(client, episode, jpeg(2 * 10**6 + number)) for number in range(pictures)]
            found[f"{name}_s"] = sum(_seconds(lean, three) for three in asked) / pictures
            if name == "cached":
                found["repeat_s"] = sum(_seconds(lean, three) for three in asked) / pictures
            lean.close()
    return {**found, "speedup": found["separate_s"] / found["cached_s"]}


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
