"""What every contender is given, and how each is timed.

The vectors are synthetic: unit vectors round 1,000 centres, spread over 48 directions that all centres share, as
wide as the shipped bundle's; queries are drawn in the same way.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

CENTRES, DIRECTIONS, SPREAD, QUERIES, K = 1000, 48, 0.9, 500, 10
WARM = 20

Matrix = NDArray[np.float32]
Ids = NDArray[np.int64]
Search = Callable[[Matrix], Ids]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Vectors [N, D], queries [Q, D], and the true ten nearest of each query, [Q, 10]; vector n has the id n + 1."""

    vectors: Matrix
    queries: Matrix
    exact: Ids

    @property
    def ids(self) -> Ids:
        """1 … N."""
        return np.arange(1, len(self.vectors) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Recall@10, and the time of one query at a time on one thread."""

    recall: float
    p50_ms: float
    p99_ms: float


def draw(size: int, dimension: int) -> Sample:
    """The sample of one size, always the same."""
    generator = np.random.default_rng(size)
    centres = generator.standard_normal((CENTRES, dimension), dtype=np.float32)
    mixing = generator.standard_normal((DIRECTIONS, dimension), dtype=np.float32) * SPREAD / DIRECTIONS**0.5

    def around(count: int) -> Matrix:
        found = np.empty((count, dimension), np.float32)
        for start in range(0, count, 100_000):
            part = found[start : start + 100_000]
            part[:] = centres[generator.integers(CENTRES, size=len(part))]
            part += generator.standard_normal((len(part), DIRECTIONS), dtype=np.float32) @ mixing
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        return found

    vectors, queries = around(size), around(QUERIES)
    with all_cores():
        exact = faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1] + 1
    return Sample(vectors=vectors, queries=queries, exact=exact)


@contextmanager
def all_cores() -> Iterator[None]:
    """FAISS may use every core: for building, never for a search that is timed."""
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(1)


def timed(sample: Sample, *searches: Search) -> Sequence[Timed]:
    """Each search over all queries, in turns, so that whatever else runs here slows all of them.

    In each turn they get different queries: a second search for the same one would find its vectors in the cache.
    """
    for query in sample.queries[:WARM]:
        for search in searches:
            search(query)
    took = np.empty((len(searches), len(sample.queries)))
    right = np.zeros(len(searches))
    for turn in range(len(sample.queries)):
        for one, search in enumerate(searches):
            at = (turn + one * len(sample.queries) // len(searches)) % len(sample.queries)
            query = sample.queries[at]
            started = time.perf_counter()
            found = search(query)
            took[one, at] = time.perf_counter() - started
            right[one] += len(np.intersect1d(sample.exact[at], found))
    return [
        Timed(recall=float(hits / sample.exact.size), p50_ms=percentile_ms(times, 50), p99_ms=percentile_ms(times, 99))
        for hits, times in zip(right, took, strict=True)
    ]


def percentile_ms(seconds: Sequence[float] | NDArray[np.float64], share: float) -> float:
    """A percentile of some seconds, in milliseconds."""
    return float(np.percentile(np.asarray(seconds), share) * 1e3)
