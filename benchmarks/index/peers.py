"""usearch and Qdrant Edge with graphs of the same parameters; searched on one thread."""

import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from app.stores.index.base import HNSW_CONSTRUCTION_WIDTH, HNSW_LINKS
from benchmarks.index.ours import TARGET, WIDTHS
from benchmarks.index.sample import Ids, K, Matrix, Sample, Timed, timed

BATCH = 5000


def measure_usearch(sample: Sample) -> dict[str, Any]:
    """Plain usearch, float32."""
    from usearch.index import Index

    started = time.perf_counter()
    dimension = sample.vectors.shape[1]
    index = Index(
        ndim=dimension, metric="ip", dtype="f32", connectivity=HNSW_LINKS, expansion_add=HNSW_CONSTRUCTION_WIDTH
    )
    index.add(sample.ids, sample.vectors, threads=os.cpu_count() or 1)
    row = {"name": "usearch", "build_s": time.perf_counter() - started, "bytes": int(index.serialized_length)}

    def at(width: int) -> Timed:
        index.expansion_search = width
        return timed(sample, lambda query: np.asarray(index.search(query, K, threads=1).keys, np.int64))[0]

    return {**row, **_least(at)}


def measure_qdrant(sample: Sample) -> dict[str, Any]:
    """Qdrant Edge in a temporary folder, payload-free points, its index built by `optimize`."""
    import qdrant_edge as edge

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=sample.vectors.shape[1], distance=edge.Distance.Dot),
            hnsw_config=edge.HnswIndexConfig(m=HNSW_LINKS, ef_construct=HNSW_CONSTRUCTION_WIDTH, full_scan_threshold=1),
            # Its graph at every size: by default small shards are scanned.
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1),
        )
        shard = edge.EdgeShard.create(folder, config)
        for start in range(0, len(sample.vectors), BATCH):
            part = zip(sample.ids[start : start + BATCH], sample.vectors[start : start + BATCH], strict=True)
            points = [edge.Point(int(number), vector.tolist()) for number, vector in part]
            shard.update(edge.UpdateOperation.upsert_points(points))
        shard.optimize()
        build_s = time.perf_counter() - started
        held = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())

        def at(width: int) -> Timed:
            parameters = edge.SearchParams(hnsw_ef=width)

            def search(query: Matrix) -> Ids:
                nearest = edge.Query.Nearest(query.tolist())
                found = shard.query(edge.QueryRequest(query=nearest, limit=K, params=parameters))
                return np.array([one.id for one in found], np.int64)

            return timed(sample, search)[0]

        row = {"name": "qdrant edge", "build_s": build_s, "bytes": held, **_least(at)}
        shard.close()
        return row


def _least(at: Any) -> dict[str, Any]:
    """The least width that reaches the target recall."""
    for width in WIDTHS:
        told: Timed = at(width)
        if told.recall >= TARGET:
            break
    return {**asdict(told), "width": width}
