"""The immutable part of an index: exact, graph or inverted lists, chosen by size, over FAISS."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import faiss
import numpy as np
from numpy.typing import NDArray

Kind = Literal["flat", "hnsw", "ivf"]
Storage = Literal["fp32", "fp16", "sq8"]

EXACT_ROWS = 20_000
"""So few candidates are scanned, whatever the kind: it takes a few milliseconds."""
EXACT_SHARE = 0.1
"""A filter that leaves less than this share is answered by a scan: graphs and lists would find too few."""
HNSW_LINKS = 32
HNSW_CONSTRUCTION_WIDTH = 64
TARGET_RECALL = 0.985
RECALL_QUERIES = 100
NOISE = 2.0
"""Lengths of noise on a unit vector: a cosine of about 0.45 to the picture it was, as words have to pictures."""
MIN_WIDTH, MAX_WIDTH = 32, 2048
NEAR_FACTOR = 4
"""So many times more candidates come from a base that keeps vectors less than exactly."""
MAX_DEVICE_K = 2048
"""FAISS's own limit on a GPU."""

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """Which base is built.

    Attributes:
        kind: None chooses by size: exact up to `flat_rows`, a graph (`hnsw`) above.
        flat_rows: most vectors that are searched exactly.
        storage: how the base keeps vectors; other than fp32, the best candidates are scored again from SQL.
    """

    kind: Kind | None = None
    flat_rows: int = 50_000
    storage: Storage = "fp32"

    def kind_for(self, rows: int) -> Kind:
        """The kind of a base of so many vectors."""
        if self.kind is not None and rows > 0:
            return self.kind
        return "flat" if rows <= self.flat_rows else "hnsw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """An immutable FAISS index; its parameters travel with each search.

    Attributes:
        ids: [n] int64, ascending; row n of `index` is item ids[n].
        on_device: the same exact index on a GPU, where FAISS has one.
        width: `efSearch` of a graph, `nprobe` of lists; 0 where the search is exact.
        recall: at 10, against a scan of what the base holds, measured when it was built; None where it is exact.
    """

    index: faiss.Index
    ids: Ids
    kind: Kind
    storage: Storage
    width: int = 0
    recall: float | None = None
    on_device: "DeviceIndex | None" = None

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.index.d)

    def vectors(self, rows: Ids) -> Vectors:
        """Vectors of rows, [len(rows), D] float32; near ones where the storage is not fp32."""
        matrix = self._matrix()
        if matrix is not None:
            return matrix[rows]
        return np.asarray(self.index.reconstruct_batch(rows), np.float32).reshape(len(rows), self.dimension)

    def search(self, query: Vectors, k: int, alive: NDArray[np.bool_] | None, tie: float) -> tuple[Ids, Vectors]:
        """Rows and scores of the k best among `alive` ([n] bool, None: all), with all ties of the last if exact."""
        count = len(self.ids) if alive is None else int(alive.sum())
        if count == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        wanted = k if self.storage == "fp32" else NEAR_FACTOR * k
        if self.kind == "flat" and alive is None:
            return self._search_flat(query, wanted, tie)
        dead = len(self.ids) - count
        if self.on_device is not None and alive is not None and dead + wanted < MAX_DEVICE_K // 2:
            rows, scores = self._search_flat(query, wanted + dead, tie)
            return rows[alive[rows]], scores[alive[rows]]
        is_selective = alive is not None and count <= max(EXACT_ROWS, EXACT_SHARE * len(self.ids))
        if self.kind != "flat" and not is_selective:
            rows, scores = self._search_near(query, k, alive, count)
            if len(rows) >= min(k, count):
                return rows, scores
        return self._scan(query, np.arange(len(self.ids)) if alive is None else np.flatnonzero(alive))

    def extended(self, vectors: Vectors, ids: Ids) -> "Base":
        """A copy of a graph or of lists with more rows; ids are greater than those it holds."""
        index = faiss.clone_index(self.index)
        index.add(np.ascontiguousarray(vectors, np.float32))
        base = replace(self, index=index, ids=np.concatenate([self.ids, ids]), on_device=None)
        return _tuned(base)

    def _search_flat(self, query: Vectors, k: int, tie: float) -> tuple[Ids, Vectors]:
        wanted = k + 16
        while True:
            index = self.on_device if self.on_device is not None and wanted <= MAX_DEVICE_K else self.index
            scores, rows = index.search(query[None], min(wanted, len(self.ids)))
            if wanted >= len(self.ids) or scores[0, -1] < scores[0, k - 1] - 2 * tie:
                return rows[0], scores[0]
            wanted *= 4

    def _search_near(self, query: Vectors, k: int, alive: NDArray[np.bool_] | None, count: int) -> tuple[Ids, Vectors]:
        share = count / len(self.ids)
        wanted = k if self.storage == "fp32" else NEAR_FACTOR * k
        width = max(self.width, wanted if self.kind == "hnsw" else 1)
        parameters = _parameters(self.kind, min(int(width / share), MAX_WIDTH * 8), alive)
        scores, rows = self.index.search(query[None], min(wanted, count), params=parameters)
        if rows[0, -1] >= 0:
            return rows[0], scores[0]
        found = rows[0] >= 0
        return rows[0][found], scores[0][found]

    def _scan(self, query: Vectors, rows: Ids) -> tuple[Ids, Vectors]:
        matrix = self._matrix()
        if matrix is not None and len(rows) > 0.5 * len(matrix):
            return rows, (matrix @ query)[rows]
        return rows, self.vectors(rows) @ query

    def _matrix(self) -> Vectors | None:
        """The vectors where FAISS keeps them as float32, without a copy."""
        inner = faiss.downcast_index(self.index.storage) if self.kind == "hnsw" else self.index
        if not isinstance(inner, faiss.IndexFlat):
            return None
        if inner.ntotal == 0:
            return np.empty((0, self.dimension), np.float32)
        flat = faiss.rev_swig_ptr(inner.get_xb(), inner.ntotal * inner.d)
        return np.asarray(flat, np.float32).reshape(inner.ntotal, inner.d)


def empty_base(dimension: int) -> Base:
    """A base of no rows."""
    return Base(index=faiss.IndexFlatIP(dimension), ids=np.empty(0, np.int64), kind="flat", storage="fp32")


def build_base(vectors: Vectors, ids: Ids, options: IndexOptions) -> Base:
    """A base over [N, D] unit vectors under ascending ids; its search width is measured against a scan."""
    kind = options.kind_for(len(ids))
    vectors = np.ascontiguousarray(vectors, np.float32)
    index = _BUILDERS[kind](vectors, options.storage)
    index.add(vectors)
    if kind == "flat":
        return Base(index=index, ids=ids, kind=kind, storage="fp32", on_device=copy_to_device(index))
    return _tuned(Base(index=index, ids=ids, kind=kind, storage=options.storage))


def _flat(vectors: Vectors, storage: Storage) -> faiss.Index:
    del storage
    return faiss.IndexFlatIP(vectors.shape[1])


def _hnsw(vectors: Vectors, storage: Storage) -> faiss.Index:
    dimension = vectors.shape[1]
    if storage == "fp32":
        index = faiss.IndexHNSWFlat(dimension, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexHNSWSQ(dimension, _quantiser(storage), HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:: max(1, len(vectors) // 50_000)])
    index.hnsw.efConstruction = HNSW_CONSTRUCTION_WIDTH
    return index


def _ivf(vectors: Vectors, storage: Storage) -> faiss.Index:
    dimension = vectors.shape[1]
    lists = int(max(1, min(4 * len(vectors) ** 0.5, len(vectors) // 39)))
    quantiser = faiss.IndexFlatIP(dimension)
    if storage == "fp32":
        index = faiss.IndexIVFFlat(quantiser, dimension, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFScalarQuantizer(
            quantiser, dimension, lists, _quantiser(storage), faiss.METRIC_INNER_PRODUCT
        )
    index.cp.seed = 1
    index.train(vectors[:: max(1, len(vectors) // (64 * lists))])
    # The positions of rows in their lists, for scans of a few.
    index.make_direct_map()
    return index


_BUILDERS: dict[Kind, Callable[[Vectors, Storage], faiss.Index]] = {"flat": _flat, "hnsw": _hnsw, "ivf": _ivf}


def _quantiser(storage: Storage) -> int:
    kinds = {"fp16": faiss.ScalarQuantizer.QT_fp16, "sq8": faiss.ScalarQuantizer.QT_8bit}
    return int(kinds[storage])


def _parameters(kind: Kind, width: int, alive: NDArray[np.bool_] | None) -> faiss.SearchParameters:
    if alive is None:
        return _plain_parameters(kind, width)
    return _new_parameters(kind, width, sel=faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little")))


@lru_cache(maxsize=64)
def _plain_parameters(kind: Kind, width: int) -> faiss.SearchParameters:
    # Made once: it takes a tenth of a search, and searches only read it.
    return _new_parameters(kind, width)


def _new_parameters(kind: Kind, width: int, **chosen: faiss.IDSelector) -> faiss.SearchParameters:
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=width, **chosen)
    return faiss.SearchParametersIVF(nprobe=width, **chosen)


def _tuned(base: Base) -> Base:
    """The base with the least width that reaches the target recall, and the recall it then has.

    The queries are vectors drowned in noise: a user's sketch or words lie farther from every picture than pictures
    from each other.
    """
    generator = np.random.default_rng(1)
    queries = base.vectors(generator.integers(len(base.ids), size=RECALL_QUERIES))
    noise = generator.standard_normal(queries.shape, dtype=np.float32)
    queries = queries + NOISE * noise / base.dimension**0.5
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    k = min(10, len(base.ids))
    rows = np.arange(len(base.ids))
    exact = [_best(base._scan(query, rows), k) for query in queries]
    width = MIN_WIDTH if base.kind == "hnsw" else 1
    while True:
        found = base.index.search(queries, k, params=_parameters(base.kind, width, None))[1]
        recall = float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(exact, found, strict=True)]))
        if recall >= TARGET_RECALL or width >= MAX_WIDTH:
            return replace(base, width=width, recall=recall)
        width *= 2


def _best(found: tuple[Ids, Vectors], k: int) -> Ids:
    rows, scores = found
    return rows[np.argpartition(-scores, k - 1)[:k]]


class DeviceIndex:
    """A GPU copy of an exact index; FAISS allows one search at a time on the resources of one."""

    def __init__(self, index: faiss.Index, resources: object) -> None:
        self._index = index
        # They must outlive the index, which does not hold them.
        self._resources = resources
        self._lock = threading.Lock()

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows of the k best of each query; k is at most `MAX_DEVICE_K`."""
        with self._lock:
            return self._index.search(queries, k)  # type: ignore[no-any-return]  # FAISS has no types


def copy_to_device(index: faiss.Index) -> DeviceIndex | None:
    """The index's copy on the first GPU; None where FAISS was built without, none is there, or it has no room."""
    if index.ntotal == 0 or not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    resources = faiss.StandardGpuResources()
    try:
        return DeviceIndex(faiss.index_cpu_to_gpu(resources, 0, index), resources)
    except RuntimeError:
        # The encoder comes first: without room the search stays where it is.
        return None
