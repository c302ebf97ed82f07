"""The vectors and queries that every index gets, and how each is timed.

The vectors are synthetic: unit vectors around 1,000 centres, spread over 48 directions that all centres share, as wide
as the shipped bundle's; queries are drawn in the same way.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import ROOT, percentile_ms

DIMENSION: int = json.loads((ROOT / "weights/mini/bundle.json").read_text(encoding="utf-8"))["dimension"]
CENTRES, DIRECTIONS, SPREAD, QUERIES, K = 1000, 48, 0.9, 500, 10
WARM = 20  # queries before the first that is timed
SHARES = (0.5, 0.05, 0.005)  # of the vectors that filters leave
Matrix = NDArray[np.float32]
Ids = NDArray[np.int64]
Search = Callable[[Matrix], Ids]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Vectors [N, D], queries [Q, D], and the ids of the true ten nearest of each query, [Q, 10]; ids are 1 … N."""

    vectors: Matrix
    queries: Matrix
    exact: Ids

    @property
    def ids(self) -> Ids:
        """1 … N."""
        return np.arange(1, len(self.vectors) + 1)


def draw(size: int) -> Sample:
    """Return the sample of one size, always the same."""
    generator = np.random.default_rng(size)
    centres = generator.standard_normal((CENTRES, DIMENSION), dtype=np.float32)
    mixing = generator.standard_normal((DIRECTIONS, DIMENSION), dtype=np.float32) * SPREAD / DIRECTIONS**0.5

    def around(count: int) -> Matrix:
        drawn = np.empty((count, DIMENSION), np.float32)
        for start in range(0, count, 100_000):
            part = drawn[start : start + 100_000]
            part[:] = centres[generator.integers(CENTRES, size=len(part))]
            part += generator.standard_normal((len(part), DIRECTIONS), dtype=np.float32) @ mixing
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        return drawn

    vectors, queries = around(size), around(QUERIES)
    with all_cores():
        exact = faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1] + 1
    return Sample(vectors=vectors, queries=queries, exact=exact)


@contextmanager
def all_cores() -> Iterator[None]:
    """Let FAISS use every core: for building, never for a search that is timed."""
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(1)


def timed(sample: Sample, *searches: Search) -> list[Row]:
    """Return recall@10 and latency of each search; they take turns, so that other work slows all of them."""
    for query in sample.queries[:WARM]:
        for search in searches:
            search(query)
    took_s = np.empty((len(searches), len(sample.queries)))
    hits = np.zeros(len(searches))
    for turn in range(len(sample.queries)):
        for number, search in enumerate(searches):
            # Different queries in a turn: a second search for the same one would find its vectors in the CPU's cache.
            at = (turn + number * len(sample.queries) // len(searches)) % len(sample.queries)
            started_s = time.perf_counter()
            found = search(sample.queries[at])
            took_s[number, at] = time.perf_counter() - started_s
            hits[number] += len(np.intersect1d(sample.exact[at], found))
    return [
        {"recall": recall, "p50_ms": percentile_ms(seconds, 50), "p99_ms": percentile_ms(seconds, 99)}
        for recall, seconds in zip((hits / sample.exact.size).tolist(), took_s.tolist(), strict=True)
    ]


def filtered(sample: Sample, allowed: Ids, search: Search, queries: int = 100) -> Row:
    """Time a search among the allowed ids only; `whole` is the share of queries that got min(k, allowed) results."""
    rows, wanted = sample.vectors[allowed - 1], min(K, len(allowed))
    complete, hits, took_s = 0, 0, []
    for query in sample.queries[:queries]:
        started_s = time.perf_counter()
        found = search(query)
        took_s.append(time.perf_counter() - started_s)
        complete += len(np.unique(found)) == wanted
        hits += len(np.intersect1d(allowed[np.argsort(-(rows @ query))[:K]], found))
    latency = {"first_ms": took_s[0] * 1e3, "p50_ms": percentile_ms(took_s, 50), "p99_ms": percentile_ms(took_s, 99)}
    return {"whole": complete / queries, "recall": hits / queries / wanted, **latency}
