"""What the shared pass saves: three tasks on one picture, with the caches of features and pictures and without."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import httpx

from benchmarks.serve.contenders import CONTENDERS
from benchmarks.serve.images import jpeg
from benchmarks.serve.measure import running


def three_tasks(pictures: int, *, port: int) -> dict[str, float]:
    """Seconds for retrieval, segmentation by the whole view and few-shot classification of each picture in turn.

    Returns:
        `cached_s` and `separate_s` a picture, and their ratio `speedup`; `repeat_s` for the same three again.
    """
    found: dict[str, float] = {}
    for name, features_bytes, pictures_bytes in (("cached", 1 << 28, 1 << 26), ("separate", 0, 0)):
        variables = {
            **CONTENDERS[0].variables,
            "VERMOUTH_FEATURE_CACHE_BYTES": str(features_bytes),
            "VERMOUTH_PICTURE_CACHE_BYTES": str(pictures_bytes),
            "VERMOUTH_LIMITS__MAX_TILES": "0",
            "VERMOUTH_DATA_DIR": str(Path(tempfile.mkdtemp(prefix="bench-three-")) / "state"),
        }
        contender = replace(CONTENDERS[0], variables=variables)
        with running(contender, port, ""), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until_ready(client)
            ways = {"support:one": jpeg(-1 % 2**32), "support:two": jpeg(-2 % 2**32)}
            episode = client.post("/fewshot/episodes", files=ways).raise_for_status().json()["id"]
            _three(client, episode, jpeg(10**6))
            images = [jpeg(2 * 10**6 + number) for number in range(pictures)]
            started_s = time.perf_counter()
            for image in images:
                _three(client, episode, image)
            found[f"{name}_s"] = (time.perf_counter() - started_s) / pictures
            if name == "cached":
                started_s = time.perf_counter()
                for image in images:
                    _three(client, episode, image)
                found["repeat_s"] = (time.perf_counter() - started_s) / pictures
    return {**found, "speedup": found["separate_s"] / found["cached_s"]}


def _three(client: httpx.Client, episode: str, image: bytes) -> None:
    client.post("/retrieve", files={"sketch": image}).raise_for_status()
    client.post("/segment", files={"image": image}, data={"classes": ["cat", "dog"]}).raise_for_status()
    client.post(f"/fewshot/episodes/{episode}/classify", files={"query": image}).raise_for_status()


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
