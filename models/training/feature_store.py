"""Frozen features on disk: one memory-mapped array a map, float16."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Maps = Mapping[str, torch.Tensor]
"""Frozen maps by name: [B, C, h, w] float32; `sd.<tap>` and `expert.<level>`."""

EXPERT_CELLS, TAP_CELLS = "expert.cells", "sd.cells"
"""What a U-head's pool reads of a view, in two maps because taps change more often."""

_BATCH = 8  # on a CPU twice as fast as 32: the maps of a batch stay in the cache


class MapReader(Protocol):
    """Maps of N views, by row."""

    def __len__(self) -> int:
        """N."""
        ...

    def read(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The maps of some rows, [len(rows), C, h, w] float32 each, channels last."""
        ...


class FeatureStore:
    """Frozen maps of N views, read by row."""

    def __init__(self, arrays: Mapping[str, NDArray[np.float16]], blank: str | None = None) -> None:
        self._arrays = dict(arrays)
        self._blank = blank

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __or__(self, other: "FeatureStore") -> "FeatureStore":
        """Both stores' maps of the same rows."""
        return FeatureStore({**self._arrays, **other._arrays}, self._blank)

    def batches(self, name: str) -> Iterator[NDArray[np.float16]]:
        """One map, row by row in batches."""
        array = self._arrays[name]
        for start in range(0, len(array), _BATCH):
            yield array[start : start + _BATCH]

    def without(self, name: str) -> "FeatureStore":
        """The store less one map."""
        return FeatureStore({key: array for key, array in self._arrays.items() if key != name}, self._blank)

    def in_memory(self) -> "FeatureStore":
        """The store with its maps read from the disk once and for all."""
        return FeatureStore({name: np.array(array) for name, array in self._arrays.items()}, self._blank)

    def blank(self, prefix: str) -> "FeatureStore":
        """The store with maps whose name starts with `prefix` reading as zeros."""
        return FeatureStore(self._arrays, prefix)

    def read(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The maps of some rows, [len(rows), C, h, w] float32 each, channels last."""
        maps = {name: self._read(name, rows) for name in self._arrays}
        return {name: values.contiguous(memory_format=torch.channels_last) for name, values in maps.items()}

    def _read(self, name: str, rows: NDArray[np.int64]) -> torch.Tensor:
        array = self._arrays[name]
        if self._blank is not None and name.startswith(self._blank):
            return torch.zeros((len(rows), *array.shape[1:]))
        return torch.from_numpy(array[rows].astype(np.float32))


class JoinedStore:
    """Several stores of the same maps as one, rows one after the other."""

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        self._stores = tuple(stores)
        self._starts = np.cumsum([0, *(len(store) for store in stores)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blank(self, prefix: str) -> "JoinedStore":
        """As of `FeatureStore`."""
        return JoinedStore([store.blank(prefix) for store in self._stores])

    def read(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """As of `FeatureStore`."""
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(owners, kind="stable")
        parts = [
            store.read(rows[order][owners[order] == number] - self._starts[number])
            for number, store in enumerate(self._stores)
            if (owners == number).any()
        ]
        back = torch.from_numpy(np.argsort(order))
        return {
            name: torch.cat([part[name] for part in parts])[back].contiguous(memory_format=torch.channels_last)
            for name in parts[0]
        }


def build_store(
    folder: Path,
    batches: Iterable[NDArray[Any]],
    limit: int,
    extract: Callable[[NDArray[Any]], Maps],
    progress: Callable[[int, float], None],
) -> FeatureStore:
    """Encodes every batch once, or opens what an earlier call finished.

    Args:
        folder: of this store; finished when it holds index.json.
        batches: inputs of the frozen network, at most `limit` rows in all.
        limit: rows to reserve.
        extract: the frozen network: [B, …] → maps.
        progress: called with (rows done, 0).
    """
    index = folder / "index.json"
    if not index.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[np.float16]] = {}
        done = 0
        for batch in batches:
            maps = extract(batch)
            for name, values in maps.items():
                if name not in arrays:
                    shape = (limit, *values.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(
                        folder / f"{name}.npy", mode="w+", dtype=np.float16, shape=shape
                    )
                arrays[name][done : done + len(batch)] = values.numpy().astype(np.float16)
            done += len(batch)
            progress(done, 0.0)
        for array in arrays.values():
            array.flush()  # type: ignore[attr-defined]  # it is a memmap
        index.write_text(json.dumps({"rows": done, "maps": sorted(arrays)}))
    facts = json.loads(index.read_text())
    return FeatureStore(
        {name: np.load(folder / f"{name}.npy", mmap_mode="r")[: facts["rows"]] for name in facts["maps"]}
    )


def in_batches(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Rows of an array, some at a time."""
    for start in range(0, len(pixels), _BATCH):
        yield pixels[start : start + _BATCH]
