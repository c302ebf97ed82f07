"""Answers of two revisions side by side: `python -m tests.e2e.same_answers REVISION` compares this tree with REVISION.

Both serve the mini bundle on loopback with empty data folders. The same requests over all routes go to each, one after
another, and every answer is compared: status, JSON up to timings and the texts of `detail`, and binary bodies byte for
byte. Then both trees encode the same images in process, and the bits of their features are compared.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.calls import Call, calls

ROOT = Path(__file__).parents[2]
SERVE = "from app.cli.main import app; app(['serve'])"
FEATURES = """
import hashlib, json, sys
from pathlib import Path
import numpy as np, torch
try:
    from models.bundle.build import load_bundle
except ImportError:  # revisions before the moves
    from models.build import load_bundle
from models.types import ImageBatch
torch.set_num_threads(1)
encoder = load_bundle(Path("weights/mini"), device="cpu").encoder
rng = np.random.default_rng(0)
found = []
with torch.inference_mode():
    for size in (1, 2, 4, 8):
        pixels = torch.from_numpy(rng.uniform(-1, 1, (size, 3, 128, 128)).astype(np.float32))
        timestep = int(sys.argv[1])
        batch = ImageBatch(pixels=pixels, timesteps=torch.full((size,), timestep), captions=[None] * size)
        features = encoder.encode_images(batch)
        texts = encoder.encode_texts([f"a drawing of {n}" for n in range(size)])
        for tensor in (features.pooled, getattr(features, "visual", None), features.dense, texts.pooled):
            bits = None if tensor is None else tensor.float().contiguous().numpy().tobytes()
            found.append(None if bits is None else hashlib.sha256(bits).hexdigest())
sys.stdout.write(json.dumps(found))
"""
IGNORED = frozenset({"timings_ms", "detail", "request_id", "msg", "message", "created_at", "updated_at", "next_cursor"})
MADE_UP = re.compile(r"\b(ep|s|i|job)_[0-9a-z]+")


def plain(value: Any) -> Any:
    """A JSON value without what may differ, and with made-up ids replaced."""
    if isinstance(value, dict):
        found = {key: plain(inner) for key, inner in value.items() if key not in IGNORED}
        # Pages are ordered by ids, and some of those are made up.
        pages = {
            key: sorted(found[key], key=json.dumps) for key in ("items", "episodes") if isinstance(found.get(key), list)
        }
        return found | pages
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return MADE_UP.sub("made-up", value) if isinstance(value, str) and len(value) < 200 else value


def answer_of(client: httpx.Client, call: Call, saved: dict[str, str]) -> tuple[Any, ...]:
    """What is compared of one answer."""
    response = client.request(call.method, call.path.format(**saved) if saved else call.path, **call.kwargs)
    kind = response.headers.get("content-type", "")
    if "ndjson" in kind:
        return response.status_code, kind, sorted(MADE_UP.sub("made-up", line) for line in response.text.splitlines())
    if "json" not in kind:
        return response.status_code, kind, hashlib.sha256(response.content).hexdigest()
    body = response.json()
    if call.save is not None and "id" in body:
        saved[call.save] = body["id"]
    return response.status_code, kind, plain(body)


@contextlib.contextmanager
def served(tree: Path) -> Iterator[httpx.Client]:
    """A server from a source tree, on its own port and data folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as data:
        environment = {**os.environ, "VERMOUTH_PORT": str(port), "VERMOUTH_DATA_DIR": data, "HF_HUB_OFFLINE": "1"}
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "VERMOUTH_LOG_LEVEL": "error"}
        # One image a pass in one worker: the last bits of a feature depend on the number of images in its pass.
        environment |= {"VERMOUTH_LANES": "1", "VERMOUTH_MAX_BATCH": "1"}
        process = subprocess.Popen([sys.executable, "-c", SERVE], cwd=tree, env=environment)
        try:
            transport = httpx.HTTPTransport(retries=30)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=120) as client:
                while client.get("/readyz").status_code != 200:
                    if process.poll() is not None:
                        raise SystemExit(f"the server in {tree} ended with {process.returncode}")
                yield client
        finally:
            process.terminate()
            process.wait(60)


def features_of(tree: Path, timestep: int) -> list[str | None]:
    """Digests of features that a tree's encoder computes in process; None for one that its revision does not have."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FEATURES, str(timestep)]
    done = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True)
    found: list[str | None] = json.loads(done.stdout)
    return found


def write(line: str) -> None:
    """One line of the report."""
    sys.stdout.write(line + "\n")


def main() -> int:
    """Compare, print a table by route, and exit 1 if any answer differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="the revision to compare with")
    revision = parser.parse_args().revision
    planned = calls()
    same: Counter[str] = Counter()
    different: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(old), revision], cwd=ROOT, check=True)
        try:
            with served(old) as before, served(ROOT) as after:
                timestep = next(iter(before.get("/bundle").json()["tasks"].values()))["timestep"]
                saved: tuple[dict[str, str], dict[str, str]] = ({}, {})
                for call in planned:
                    first, second = (answer_of(c, call, s) for c, s in zip((before, after), saved, strict=True))
                    route = re.sub(r"\{\w+\}|shape-\d+", "*", call.path.partition("?")[0])
                    (same if first == second else different)[f"{call.method} {route}"] += 1
                    if first != second:
                        write(f"- {call.method} {call.path}\n  before {first!r:.600}\n  after  {second!r:.600}")
            bits = [features_of(tree, timestep) for tree in (old, ROOT)]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    for route in sorted({*same, *different}):
        write(f"{route:45s} same {same[route]:3d}  different {different[route]:3d}")
    pairs = [pair for pair in zip(*bits, strict=True) if None not in pair]
    equal = sum(old == new for old, new in pairs)
    write(f"{len(planned)} requests: {same.total()} same, {different.total()} different")
    write(f"{len(pairs)} feature arrays: {equal} bit-equal")
    return 0 if not different and equal == len(pairs) else 1


if __name__ == "__main__":
    sys.exit(main())
