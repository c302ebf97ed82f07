"""Exact search on a GPU, where the installed FAISS can and there is one (the extra `gpu`)."""

import threading

import faiss
import numpy as np
from numpy.typing import NDArray

MAX_DEVICE_K = 2048
"""FAISS's own limit on a GPU."""


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
