"""The vector index beside plain FAISS HNSW, usearch and Qdrant Edge: `python -m benchmarks.index`.

Writes `docs/results/index.md` and `.json`. The vectors are synthetic: unit vectors round 1,000 centres, as wide as
the shipped bundle's; queries are drawn round the same centres. One thread, one query at a time, k = 10.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from app.stores.index_base import HNSW_CONSTRUCTION_WIDTH, HNSW_LINKS, IndexOptions
from app.stores.index_snapshots import IndexSnapshots, SnapshotKey
from app.stores.vector_index import Entry, Removal, VectorIndex

ROOT = Path(__file__).parents[1]
CENTRES, SPREAD, K, QUERIES = 1000, 0.7, 10, 500
SHARES = (0.5, 0.05, 0.005)
WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)

Matrix = NDArray[np.float32]
Search = Callable[[Matrix], NDArray[np.int64]]


def main() -> None:
    """Measure every size and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--flat-rows", type=int, default=IndexOptions().flat_rows)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    dimension = json.loads((ROOT / "weights/mini/bundle.json").read_text())["dimension"]
    rows = [row for size in options.sizes for row in measure(size, dimension, options.flat_rows)]
    told = {"when": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"), "commit": commit(), "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "index.json").write_text(json.dumps(told, indent=1))
    (options.out / "index.md").write_text(report(told, dimension))


def measure(size: int, dimension: int, flat_rows: int) -> list[dict[str, Any]]:
    """One row a contender."""
    generator = np.random.default_rng(size)
    centres = generator.standard_normal((CENTRES, dimension)).astype(np.float32)
    vectors, queries = around(centres, size, generator), around(centres, QUERIES, generator)
    flat = faiss.IndexFlatIP(dimension)
    flat.add(vectors)
    exact = flat.search(queries, K)[1]
    ours = measure_ours(vectors, queries, exact, flat_rows)
    rows = [ours, measure_faiss(vectors, queries, exact, ours["recall"])]
    for contender in (measure_usearch, measure_qdrant):
        try:
            rows.append(contender(vectors, queries, exact))
        except ImportError as err:
            rows.append({"name": contender.__name__.removeprefix("measure_"), "missing": str(err)})
    return [{"size": size, **row} for row in rows]


def measure_ours(vectors: Matrix, queries: Matrix, exact: NDArray[np.int64], flat_rows: int) -> dict[str, Any]:
    """This service's index with all it can do."""
    index = VectorIndex(vectors.shape[1], IndexOptions(flat_rows=flat_rows))
    ids = np.arange(len(vectors))
    started = time.perf_counter()
    index.load(vectors, ids, 0)
    while index.wants_merge:
        index.merge()
    build_s = time.perf_counter() - started
    row = {
        "name": f"vermouth ({index.snapshot.base.kind})",
        "build_s": build_s,
        "bytes": size_of(index.snapshot.base.index),
    }
    row.update(timed(lambda query: best(*index.search(query, K)), queries, exact))
    row["filtered"] = [filtered(index, vectors, queries, share) for share in SHARES]
    row["restart_s"] = restart_s(index)
    fresh = [Entry(item_id=len(vectors) + n, vector=query, mark=n) for n, query in enumerate(queries)]
    started = time.perf_counter()
    for entry in fresh:
        index.apply([entry], [])
    row["insert_ms"] = (time.perf_counter() - started) / len(fresh) * 1e3
    seen = sum(entry.item_id in index.search(entry.vector, 1)[0] for entry in fresh)
    row["inserted_seen"] = seen / len(fresh)
    started = time.perf_counter()
    for n in range(len(fresh)):
        index.apply([], [Removal(item_id=n, mark=0)])
    row["delete_ms"] = (time.perf_counter() - started) / len(fresh) * 1e3
    return row


def filtered(index: VectorIndex, vectors: Matrix, queries: Matrix, share: float) -> dict[str, float]:
    """Search among a random share of the ids, given as the filter's SQL gives them."""
    generator = np.random.default_rng(7)
    allowed = np.flatnonzero(generator.random(len(vectors)) < share)
    found, took, right = 0, [], 0
    for query in queries[:100]:
        started = time.perf_counter()
        ids, scores = index.search(query, K, allowed)
        took.append(time.perf_counter() - started)
        top = best(ids, scores)
        found += len(top) == min(K, len(allowed))
        true = allowed[np.argsort(-(vectors[allowed] @ query))[:K]]
        right += len(np.intersect1d(true, top))
    return {
        "share": share,
        "whole": found / 100,
        "recall": right / (100 * min(K, len(allowed))),
        "p50_ms": float(np.percentile(took, 50) * 1e3),
        "p99_ms": float(np.percentile(took, 99) * 1e3),
    }


def restart_s(index: VectorIndex) -> float:
    """Seconds to verify and read the snapshot back."""
    key = SnapshotKey(database_id="x", gallery_id=1, fingerprint="f", dimension=index.snapshot.base.dimension)
    with tempfile.TemporaryDirectory() as folder:
        snapshots = IndexSnapshots(Path(folder))
        snapshots.write(key, index.snapshot, 1)
        started = time.perf_counter()
        saved = snapshots.read(key)
        took = time.perf_counter() - started
        if saved is None:
            raise SystemExit("the snapshot was not read back")
        return took


def measure_faiss(vectors: Matrix, queries: Matrix, exact: NDArray[np.int64], recall: float) -> dict[str, Any]:
    """Plain FAISS HNSW of the same shape, at the least width that has our recall."""
    started = time.perf_counter()
    index = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = HNSW_CONSTRUCTION_WIDTH
    index.add(vectors)
    row: dict[str, Any] = {"name": "faiss HNSW", "build_s": time.perf_counter() - started, "bytes": size_of(index)}
    for width in WIDTHS:
        parameters = faiss.SearchParametersHNSW(efSearch=width)
        told = timed(lambda query, p=parameters: index.search(query[None], K, params=p)[1][0], queries, exact)
        if told["recall"] >= recall or width == WIDTHS[-1]:
            break
    return {**row, **told, "width": width}


def measure_usearch(vectors: Matrix, queries: Matrix, exact: NDArray[np.int64]) -> dict[str, Any]:
    from usearch.index import Index

    started = time.perf_counter()
    index = Index(
        ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=HNSW_LINKS, expansion_add=HNSW_CONSTRUCTION_WIDTH
    )
    index.add(np.arange(len(vectors)), vectors, threads=1)
    row = {"name": "usearch", "build_s": time.perf_counter() - started, "bytes": int(index.serialized_length)}
    for width in WIDTHS:
        index.expansion_search = width
        told = timed(lambda query: index.search(query, K, threads=1).keys, queries, exact)
        if told["recall"] >= 0.98:
            break
    return {**row, **told, "width": width}


def measure_qdrant(vectors: Matrix, queries: Matrix, exact: NDArray[np.int64]) -> dict[str, Any]:
    import qdrant_edge as edge

    with tempfile.TemporaryDirectory() as folder:
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=vectors.shape[1], distance=edge.Distance.Dot),
            hnsw_config=edge.HnswIndexConfig(m=HNSW_LINKS, ef_construct=HNSW_CONSTRUCTION_WIDTH, full_scan_threshold=1),
        )
        started = time.perf_counter()
        shard = edge.EdgeShard.create(folder, config)
        for start in range(0, len(vectors), 1000):
            part = vectors[start : start + 1000].tolist()
            shard.update(edge.UpdateOperation.upsert_points([edge.Point(start + n, one) for n, one in enumerate(part)]))
        shard.optimize()
        row: dict[str, Any] = {"name": "qdrant edge", "build_s": time.perf_counter() - started}
        row["bytes"] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        for width in WIDTHS:
            parameters = edge.SearchParams(hnsw_ef=width)

            def search(query: Matrix, p: Any = parameters) -> NDArray[np.int64]:
                nearest = edge.Query.Nearest(query.tolist())
                found = shard.query(edge.QueryRequest(query=nearest, limit=K, params=p))
                return np.array([one.id for one in found])

            told = timed(search, queries, exact)
            if told["recall"] >= 0.98:
                break
        shard.close()
        return {**row, **told, "width": width}


def timed(search: Search, queries: Matrix, exact: NDArray[np.int64]) -> dict[str, float]:
    """Recall@10 and the time of one query at a time."""
    for query in queries[:20]:
        search(query)
    took, right = [], 0
    for query, true in zip(queries, exact, strict=True):
        started = time.perf_counter()
        found = search(query)
        took.append(time.perf_counter() - started)
        right += len(np.intersect1d(true, found))
    p50, p99 = np.percentile(took, [50, 99]) * 1e3
    return {"recall": right / exact.size, "p50_ms": float(p50), "p99_ms": float(p99)}


def best(ids: NDArray[np.int64], scores: Matrix) -> NDArray[np.int64]:
    return ids[np.argsort(-scores)[:K]]


def around(centres: Matrix, count: int, generator: np.random.Generator) -> Matrix:
    chosen = centres[generator.integers(len(centres), size=count)]
    vectors = chosen + SPREAD * generator.standard_normal(chosen.shape, dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def size_of(index: Any) -> int:
    """Bytes of an index as FAISS writes it, which is what it holds in memory too."""
    with tempfile.NamedTemporaryFile() as file:
        faiss.write_index(index, file.name)
        return Path(file.name).stat().st_size


def report(told: dict[str, Any], dimension: int) -> str:
    lines = [
        "# The vector index beside others",
        "",
        f"`make bench-index`, {told['when']}, commit {told['commit']}, one thread of {machine()}; "
        f"{dimension}-wide synthetic vectors, k = {K}, {QUERIES} queries.",
        "",
        "| vectors | index | build s | bytes a vector | recall@10 | p50 ms | p99 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in told["rows"]:
        if "missing" in row:
            lines.append(f"| {row['size']:,} | {row['name']} | not installed | | | | |")
            continue
        numbers = f"{row['build_s']:.1f} | {row['bytes'] / row['size']:.0f} | {row['recall']:.3f}"
        lines.append(f"| {row['size']:,} | {row['name']} | {numbers} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |")
    lines += [
        "",
        "Ours alone: a filter leaves a share of the vectors; *whole* is the share of queries that got all they could.",
        "",
        "| vectors | share | whole | recall@10 | p50 ms | p99 ms |",
        "|---|---|---|---|---|---|",
    ]
    ours = [row for row in told["rows"] if "filtered" in row]
    for row in ours:
        for one in row["filtered"]:
            numbers = f"{one['whole']:.2f} | {one['recall']:.3f} | {one['p50_ms']:.2f} | {one['p99_ms']:.2f}"
            lines.append(f"| {row['size']:,} | {one['share']} | {numbers} |")
    lines += ["", "| vectors | insert ms | seen at once | delete ms | snapshot read s |", "|---|---|---|---|---|"]
    for row in ours:
        numbers = (
            f"{row['insert_ms']:.3f} | {row['inserted_seen']:.2f} | {row['delete_ms']:.3f} | {row['restart_s']:.2f}"
        )
        lines.append(f"| {row['size']:,} | {numbers} |")
    return "\n".join(lines) + "\n"


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":", 1)[1].strip() if names else "an unnamed processor"


if __name__ == "__main__":
    sys.exit(main())
