"""The immutable base of a vector index over FAISS: an exact scan or an HNSW graph, chosen by size."""

import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import faiss
import numpy as np
from numpy.typing import NDArray

Kind = Literal["flat", "hnsw"]
Storage = Literal["fp32", "fp16", "sq8"]

EXACT_ROWS = 20_000  # up to this many candidates are scanned whatever the kind: a scan takes a few milliseconds
EXACT_SHARE = 0.1  # a filter that leaves a smaller share is answered by a scan: a graph would find too few
HNSW_LINKS = 32
HNSW_CONSTRUCTION_WIDTH = 64
TARGET_RECALL = 0.985
RECALL_QUERIES = 100
# Length of the noise added to a unit vector: a cosine of about 0.45 to the original, as between text and image.
NOISE = 2.0
MIN_WIDTH, MAX_WIDTH = 32, 2048
LOSSY_FACTOR = 4  # a base with lossy storage returns this many times more candidates
TRAINING_ROWS = 50_000
MAX_DEVICE_K = 2048  # FAISS's limit on a GPU

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """Which base is built.

    Attributes:
        kind: None chooses by size: exact up to `flat_rows`, an HNSW graph above.
        flat_rows: most vectors that are searched exactly.
        storage: how a graph stores vectors; other than fp32, the best candidates are scored again from SQL.
        query_weights: [K, D] float32, the numbers that each kind of query weighs: a graph's recall is measured with all
            kinds; None where queries are like vectors.
    """

    kind: Kind | None = None
    flat_rows: int = 50_000
    storage: Storage = "fp32"
    query_weights: Vectors | None = None

    def kind_for(self, rows: int) -> Kind:
        """Return the kind of a base of `rows` vectors."""
        if self.kind is not None and rows > 0:  # nothing to train a graph on: empty bases are flat
            return self.kind
        return "flat" if rows <= self.flat_rows else "hnsw"


class DeviceIndex:
    """A GPU copy of an exact index."""

    def __init__(self, index: faiss.Index, resources: object) -> None:
        self._index = index
        self._resources = resources  # must outlive the index, which does not own them
        self._lock = threading.Lock()  # FAISS allows one search at a time on one set of resources

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """Return scores [Q, k] and rows [Q, k] of the k best per query; k is at most `MAX_DEVICE_K`."""
        with self._lock:
            return self._index.search(queries, k)  # type: ignore[no-any-return]  # FAISS has no types


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """An immutable FAISS index; search parameters are passed with each call.

    Attributes:
        ids: [n] int64, ascending; row i of `index` is item ids[i].
        width: `efSearch` of a graph; 0 for an exact base.
        recall: recall@10 against a scan, measured when the base was built; None for an exact base.
        on_device: a GPU copy of an exact index, where FAISS has a GPU.
    """

    index: faiss.Index
    ids: Ids
    kind: Kind
    storage: Storage
    width: int = 0
    recall: float | None = None
    on_device: DeviceIndex | None = None

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.index.d)

    def vectors(self, rows: Ids) -> Vectors:
        """Return the vectors of rows, [len(rows), D] float32; approximate unless the storage is fp32."""
        matrix = self._matrix()
        if matrix is not None:
            return matrix[rows]
        return np.asarray(self.index.reconstruct_batch(rows), np.float32).reshape(len(rows), self.dimension)

    def search(self, query: Vectors, k: int, alive: NDArray[np.bool_] | None, tie: float) -> tuple[Ids, Vectors]:
        """Return rows and scores of the k best, unordered; an exact search adds all ties of the last.

        Args:
            query: [D] float32.
            k: how many are wanted.
            alive: [n] bool, the rows to choose from; None for all.
            tie: scores closer than this are ties.
        """
        count = len(self.ids) if alive is None else int(alive.sum())
        if count == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        wanted = k if self.storage == "fp32" else LOSSY_FACTOR * k
        if self.kind == "flat" and alive is None:
            return self._search_flat(query, wanted, tie)
        dead = len(self.ids) - count
        # FAISS takes no selector on a GPU: fetch as many more as there are tombstones, then drop those.
        if self.on_device is not None and alive is not None and dead + wanted < MAX_DEVICE_K // 2:
            rows, scores = self._search_flat(query, wanted + dead, tie)
            return rows[alive[rows]], scores[alive[rows]]
        is_selective = alive is not None and count <= max(EXACT_ROWS, EXACT_SHARE * len(self.ids))
        if self.kind == "hnsw" and not is_selective:
            rows, scores = self._search_graph(query, wanted, alive, count)
            if len(rows) >= min(k, count):
                return rows, scores
        return self._scan(query, np.arange(len(self.ids)) if alive is None else np.flatnonzero(alive))

    def extended(self, vectors: Vectors, ids: Ids, query_weights: Vectors | None = None) -> "Base":
        """Return a copy of a graph with more rows; `ids` are greater than those it holds."""
        index = faiss.clone_index(self.index)  # searches go on in the old one
        index.add(np.ascontiguousarray(vectors, np.float32))
        grown = replace(self, index=index, ids=np.concatenate([self.ids, ids]), on_device=None)
        return _tuned(grown, query_weights)

    def _search_flat(self, query: Vectors, k: int, tie: float) -> tuple[Ids, Vectors]:
        wanted = k + 16
        while True:
            index = self.on_device if self.on_device is not None and wanted <= MAX_DEVICE_K else self.index
            scores, rows = index.search(query[None], min(wanted, len(self.ids)))
            # Repeat with more until the last score is clearly below the k-th: then no tie is cut off.
            if wanted >= len(self.ids) or scores[0, -1] < scores[0, k - 1] - 2 * tie:
                return rows[0], scores[0]
            wanted *= 4

    def _search_graph(
        self, query: Vectors, wanted: int, alive: NDArray[np.bool_] | None, count: int
    ) -> tuple[Ids, Vectors]:
        # The narrower the filter, the wider the search: only the share `count / n` of visited rows counts.
        width = min(int(max(self.width, wanted) / (count / len(self.ids))), MAX_WIDTH * 8)
        scores, rows = self.index.search(query[None], min(wanted, count), params=_parameters(width, alive))
        if rows[0, -1] >= 0:
            return rows[0], scores[0]
        found = rows[0] >= 0  # FAISS fills missing results with -1
        return rows[0][found], scores[0][found]

    def _scan(self, query: Vectors, rows: Ids) -> tuple[Ids, Vectors]:
        matrix = self._matrix()
        if matrix is not None and len(rows) > 0.5 * len(matrix):
            return rows, (matrix @ query)[rows]  # cheaper than copying most rows first
        return rows, self.vectors(rows) @ query

    def _matrix(self) -> Vectors | None:
        """Return a view of FAISS's float32 vectors, [n, D]; None for lossy storage."""
        inner = faiss.downcast_index(self.index.storage) if self.kind == "hnsw" else self.index
        if not isinstance(inner, faiss.IndexFlat):
            return None
        if inner.ntotal == 0:
            return np.empty((0, self.dimension), np.float32)
        flat = faiss.rev_swig_ptr(inner.get_xb(), inner.ntotal * inner.d)
        return np.asarray(flat, np.float32).reshape(inner.ntotal, inner.d)


def build_base(vectors: Vectors, ids: Ids, options: IndexOptions) -> Base:
    """Build a base over [N, D] vectors under ascending ids; a graph's search width is tuned against a scan."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if options.kind_for(len(ids)) == "flat":
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return Base(index=index, ids=ids, kind="flat", storage="fp32", on_device=copy_to_device(index))
    index = _empty_graph(vectors, options.storage)
    index.add(vectors)
    return _tuned(Base(index=index, ids=ids, kind="hnsw", storage=options.storage), options.query_weights)


def copy_to_device(index: faiss.Index) -> DeviceIndex | None:
    """Copy an exact index to the first GPU; None if FAISS has no GPU support, or the GPU is absent or full."""
    # The extra `cpu` installs a FAISS without these names.
    if index.ntotal == 0 or not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    resources = faiss.StandardGpuResources()
    try:
        return DeviceIndex(faiss.index_cpu_to_gpu(resources, 0, index), resources)
    except RuntimeError:
        return None  # no room beside the encoder: searches stay on the CPU


def _empty_graph(vectors: Vectors, storage: Storage) -> faiss.Index:
    dimension = vectors.shape[1]
    if storage == "fp32":
        index = faiss.IndexHNSWFlat(dimension, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
        quantizers = {"fp16": faiss.ScalarQuantizer.QT_fp16, "sq8": faiss.ScalarQuantizer.QT_8bit}
        index = faiss.IndexHNSWSQ(dimension, int(quantizers[storage]), HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        # Ranges of the quantizer: a sample is enough.
        index.train(vectors[:: max(1, len(vectors) // TRAINING_ROWS)])
    index.hnsw.efConstruction = HNSW_CONSTRUCTION_WIDTH
    return index


def _parameters(width: int, alive: NDArray[np.bool_] | None) -> faiss.SearchParameters:
    if alive is None:
        return _unfiltered_parameters(width)
    selector = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
    return faiss.SearchParametersHNSW(efSearch=width, sel=selector)


@lru_cache(maxsize=64)
def _unfiltered_parameters(width: int) -> faiss.SearchParameters:
    # Shared by all searches, which only read it: construction takes a tenth of a search.
    return faiss.SearchParametersHNSW(efSearch=width)


def _tuned(base: Base, query_weights: Vectors | None) -> Base:
    """Return the graph with the least width that reaches the target recall, and the recall it has then.

    Queries are stored vectors with noise added: a sketch or text is farther from every image than images are from
    each other, so stored vectors alone would overstate the recall. Kinds of queries take turns.
    """
    generator = np.random.default_rng(1)  # two replicas tune alike
    queries = base.vectors(generator.integers(len(base.ids), size=RECALL_QUERIES))
    noise = generator.standard_normal(queries.shape, dtype=np.float32)
    if query_weights is not None:
        weights = np.resize(query_weights, queries.shape)  # repeats the rows
        queries, noise = queries * weights, noise * weights
        for part in (queries, noise):
            part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
        noise *= base.dimension**0.5
    queries = queries + NOISE * noise / base.dimension**0.5
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    k = min(10, len(base.ids))
    rows = np.arange(len(base.ids))
    exact = [rows[np.argpartition(-base._scan(query, rows)[1], k - 1)[:k]] for query in queries]
    width = MIN_WIDTH
    while True:
        found = base.index.search(queries, k, params=_parameters(width, None))[1]
        recall = float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(exact, found, strict=True)]))
        if recall >= TARGET_RECALL or width >= MAX_WIDTH:
            return replace(base, width=width, recall=recall)
        width *= 2
