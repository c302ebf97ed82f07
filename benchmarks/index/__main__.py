"""The vector index beside plain FAISS HNSW, usearch and Qdrant Edge: `python -m benchmarks.index`.

Every size's parts are written to `docs/results/index.json` as soon as they are measured, and are not measured
again: a run that was stopped goes on. Built with all cores, searched on one thread, one query at a time, k = 10.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss

from app.stores.index.base import IndexOptions
from benchmarks.header import header
from benchmarks.index import ours, peers, report, sample, store

ROOT = Path(__file__).parents[2]
SIZES = (10_000, 100_000, 1_000_000)
PARTS = ("vermouth", "usearch", "qdrant edge")


def main() -> None:
    """Measure what was not measured yet, and write the report."""
    options = _options()
    faiss.omp_set_num_threads(1)
    index = IndexOptions(flat_rows=options.flat_rows)
    if options.restart is not None:
        sys.stdout.write(json.dumps(store.restart(options.restart, options.dimension, index)) + "\n")
        sys.stdout.flush()
        # A graph may be building in the background, for minutes; nobody waits for it here.
        os._exit(0)
    path: Path = options.out / "index.json"
    told: dict[str, Any] = {"dimension": options.dimension, "parts": []}
    if path.exists() and not options.again:
        told = json.loads(path.read_text(encoding="utf-8"))
    for size in options.sizes:
        known = {one["part"] for one in told["parts"] if one["size"] == size}
        missing = [part for part in options.parts if part not in known]
        if not missing:
            continue
        drawn = sample.draw(size, options.dimension)
        for part in missing:
            started = time.perf_counter()
            rows = _measured(part, drawn, index)
            took = time.perf_counter() - started
            about = {"size": size, "part": part, "header": header("make bench-index"), "took_s": took}
            told["parts"].append({**about, "rows": rows})
            options.out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            report.write(options.out, told)
            sys.stderr.write(f"{size} {part}: {took:.0f} s\n")
    if told["parts"]:
        report.write(options.out, told)


def _options() -> argparse.Namespace:
    manifest = json.loads((ROOT / "weights/mini/bundle.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--flat-rows", type=int, default=IndexOptions().flat_rows)
    parser.add_argument("--dimension", type=int, default=manifest["dimension"])
    parser.add_argument("--again", action="store_true", help="measure everything anew")
    parser.add_argument("--restart", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measured(part: str, drawn: sample.Sample, options: IndexOptions) -> list[dict[str, Any]]:
    peer: dict[str, Callable[[sample.Sample], dict[str, Any]]] = {
        "usearch": peers.measure_usearch,
        "qdrant edge": peers.measure_qdrant,
    }
    if part != "vermouth":
        return [peer[part](drawn)]
    index, rows = ours.measure(drawn, options)
    rows[0]["store"] = store.measure(drawn, index, options)
    return rows


if __name__ == "__main__":
    main()
