"""The indexes that are compared: this service's, plain FAISS HNSW, usearch and Qdrant Edge.

All graphs have the same parameters, are built with all cores and are searched on one thread.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from app.stores.index.base import HNSW_CONSTRUCTION_WIDTH, HNSW_LINKS, IndexOptions
from app.stores.index.delta import VectorIndex
from benchmarks.index import store
from benchmarks.index.sample import SHARES, Ids, K, Matrix, Row, Sample, Search, all_cores, filtered, timed

WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
TARGET = 0.98  # recall@10 that every peer must reach
BATCH = 5000  # points in one insert


def vermouth(sample: Sample) -> list[Row]:
    """Return a row of this service's index, with the store over it, and rows of plain FAISS.

    Plain FAISS is searched at the least width that reaches our recall, and at the least that reaches 0.98. Where our
    base is a graph, it is searched in that very graph: a second one of the same parameters would be the same. Where
    ours is exact, plain FAISS's exact search is a row too, and our latency is compared with it.
    """
    index = VectorIndex(sample.vectors.shape[1], IndexOptions())
    started_s = time.perf_counter()
    with all_cores():
        index.load(sample.vectors, sample.ids, 0)
        while index.wants_merge:
            index.merge()
    build_s = time.perf_counter() - started_s
    base = index.snapshot.base
    graph, graph_s = (base.index, build_s) if base.kind == "hnsw" else _plain_graph(sample.vectors)
    row: Row = {"name": f"vermouth ({base.kind})", "build_s": build_s, "bytes": _bytes_of(base.index)}
    row |= {"width": base.width, "claimed_recall": base.recall, "filtered": [], "graph_filtered": []}
    for share in SHARES:
        passes = np.random.default_rng(7).random(len(sample.vectors)) < share
        allowed = sample.ids[passes]
        row["filtered"].append({"share": share, **filtered(sample, allowed, _search(index, allowed))})
        row["graph_filtered"].append(filtered(sample, allowed, _graph_search(graph, 64, passes))["whole"])
    found: dict[str, Row] = {}
    for width in sorted({*WIDTHS, base.width} - {0}):  # 0: exact
        ours, theirs = timed(sample, _search(index), _graph_search(graph, width))
        row |= ours
        for name, wanted in (("faiss HNSW, recall ≥ 0.98", TARGET), ("faiss HNSW, recall ≥ ours", ours["recall"])):
            if name not in found and (theirs["recall"] >= wanted or width == WIDTHS[-1]):
                plain = {"name": name, "build_s": graph_s, "bytes": _bytes_of(graph), "width": width}
                found[name] = {**plain, **theirs, "ours_p50_ms": ours["p50_ms"]}
        if len(found) == 2:
            break
    if base.kind == "flat":
        ours, theirs = timed(sample, _search(index), lambda query: base.index.search(query[None], K)[1][0] + 1)
        plain = {"name": "faiss Flat", "build_s": build_s, "bytes": row["bytes"], "width": 0}
        found["faiss Flat"] = {**plain, **theirs, "ours_p50_ms": ours["p50_ms"]}
    equal = found.get("faiss Flat", found["faiss HNSW, recall ≥ ours"])
    row |= {"latency_ratio": equal["ours_p50_ms"] / equal["p50_ms"], "against": equal["name"].partition(",")[0]}
    row["store"] = store.measure(sample, index)
    return [row, *found.values()]


def usearch(sample: Sample) -> list[Row]:
    """Return the row of plain usearch, float32."""
    from usearch.index import Index

    started_s = time.perf_counter()
    shape = {"connectivity": HNSW_LINKS, "expansion_add": HNSW_CONSTRUCTION_WIDTH}
    index = Index(ndim=sample.vectors.shape[1], metric="ip", dtype="f32", **shape)
    index.add(sample.ids, sample.vectors, threads=os.cpu_count() or 1)
    row = {"name": "usearch", "build_s": time.perf_counter() - started_s, "bytes": int(index.serialized_length)}

    def search_at(width: int) -> Search:
        index.expansion_search = width
        return lambda query: np.asarray(index.search(query, K, threads=1).keys, np.int64)

    return [row | _least(sample, search_at)]


def qdrant_edge(sample: Sample) -> list[Row]:
    """Return the row of Qdrant Edge: points without payload, the index built by `optimize`."""
    import qdrant_edge as edge

    with tempfile.TemporaryDirectory() as folder:
        started_s = time.perf_counter()
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=sample.vectors.shape[1], distance=edge.Distance.Dot),
            hnsw_config=edge.HnswIndexConfig(m=HNSW_LINKS, ef_construct=HNSW_CONSTRUCTION_WIDTH, full_scan_threshold=1),
            # A graph at every size: by default small shards are scanned.
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1),
        )
        shard = edge.EdgeShard.create(folder, config)
        for start in range(0, len(sample.vectors), BATCH):
            part = zip(sample.ids[start : start + BATCH], sample.vectors[start : start + BATCH], strict=True)
            points = [edge.Point(int(number), vector.tolist()) for number, vector in part]
            shard.update(edge.UpdateOperation.upsert_points(points))
        shard.optimize()
        build_s = time.perf_counter() - started_s
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())

        def search_at(width: int) -> Search:
            parameters = edge.SearchParams(hnsw_ef=width)

            def search(query: Matrix) -> Ids:
                nearest = edge.QueryRequest(query=edge.Query.Nearest(query.tolist()), limit=K, params=parameters)
                return np.array([one.id for one in shard.query(nearest)], np.int64)

            return search

        row = {"name": "qdrant edge", "build_s": build_s, "bytes": size, **_least(sample, search_at)}
        shard.close()
        return [row]


PARTS = {"vermouth": vermouth, "usearch": usearch, "qdrant edge": qdrant_edge}


def _least(sample: Sample, search_at: Callable[[int], Search]) -> Row:
    """Return the row of the least width that reaches the target recall, or of the last."""
    for width in WIDTHS:
        (found,) = timed(sample, search_at(width))
        if found["recall"] >= TARGET:
            break
    return {**found, "width": width}


def _bytes_of(index: faiss.Index) -> int:
    """Return the bytes of an index as FAISS writes it, which is what it holds in memory too."""
    return int(faiss.serialize_index(index).nbytes)


def _search(index: VectorIndex, allowed: Ids | None = None) -> Search:
    def search(query: Matrix) -> Ids:
        ids, scores = index.search(query, K, allowed)
        return ids if len(ids) <= K else ids[np.argsort(-scores)[:K]]

    return search


def _plain_graph(vectors: Matrix) -> tuple[faiss.Index, float]:
    started_s = time.perf_counter()
    index = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = HNSW_CONSTRUCTION_WIDTH
    with all_cores():
        index.add(vectors)
    return index, time.perf_counter() - started_s


def _graph_search(index: faiss.Index, width: int, passes: NDArray[np.bool] | None = None) -> Search:
    selector = None if passes is None else faiss.IDSelectorBitmap(np.packbits(passes, bitorder="little"))
    parameters = faiss.SearchParametersHNSW(efSearch=width, sel=selector)

    def search(query: Matrix) -> Ids:
        rows: Ids = index.search(query[None], K, params=parameters)[1][0]
        return rows + 1 if passes is None else rows[rows >= 0] + 1  # -1 where a filtered search ends early

    return search
