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
_COPY_ROWS = 4096


class MapReader(Protocol):
    """Maps of N views, by row."""

    def __len__(self) -> int:
        """N."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the maps lie."""
        ...

    def read(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The maps of some rows, [len(rows), C, h, w] float32 each, channels last; `rows` lie where the maps do."""
        ...


class FeatureStore:
    """Frozen maps of N views as they lie on the disk."""

    def __init__(self, arrays: Mapping[str, NDArray[np.float16]]) -> None:
        self._arrays = dict(arrays)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __or__(self, other: "FeatureStore") -> "FeatureStore":
        """Both stores' maps of the same rows."""
        return FeatureStore({**self._arrays, **other._arrays})

    def batches(self, name: str, size: int) -> Iterator[NDArray[np.float16]]:
        """One map, `size` rows at a time."""
        yield from in_batches(self._arrays[name], size)

    def without(self, name: str) -> "FeatureStore":
        """The store less one map."""
        return FeatureStore({key: array for key, array in self._arrays.items() if key != name})

    def on(self, device: torch.device) -> "DeviceStore":
        """The store with its maps on a device, read from the disk once and for all."""
        return DeviceStore.joined([self], device)

    @property
    def arrays(self) -> Mapping[str, NDArray[np.float16]]:
        """The maps, [N, C, h, w] each."""
        return self._arrays


class DeviceStore:
    """Maps on one device, read by row there."""

    def __init__(self, maps: Mapping[str, torch.Tensor], blank: str | None = None) -> None:
        self._maps = dict(maps)
        self._blank = blank

    @classmethod
    def joined(cls, stores: Sequence[FeatureStore], device: torch.device) -> "DeviceStore":
        """Several stores of the same maps as one, rows one after the other."""
        return cls({name: joined([store.arrays[name] for store in stores], device) for name in stores[0].arrays})

    def __len__(self) -> int:
        return len(next(iter(self._maps.values())))

    def blank(self, prefix: str) -> "DeviceStore":
        """The store with maps whose name starts with `prefix` reading as zeros."""
        return DeviceStore(self._maps, prefix)

    def replaced(self, maps: Mapping[str, torch.Tensor]) -> "DeviceStore":
        """The store with some maps in the place of those of the same name."""
        return DeviceStore({**self._maps, **maps}, self._blank)

    @property
    def device(self) -> torch.device:
        """Where the maps lie."""
        return next(iter(self._maps.values())).device

    def only(self, *names: str) -> "DeviceStore":
        """The store with some of its maps."""
        return DeviceStore({name: self._maps[name] for name in names}, self._blank)

    def read(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """As of `MapReader`."""
        found = {}
        for name, values in self._maps.items():
            if self._blank is not None and name.startswith(self._blank):
                found[name] = torch.zeros((len(rows), *values.shape[1:]), device=values.device)
            else:
                found[name] = values[rows].float().contiguous(memory_format=torch.channels_last)
        return found


def joined(arrays: Sequence[NDArray[Any]], device: torch.device) -> torch.Tensor:
    """Arrays of equal rows as one tensor on a device, rows one after the other; each is copied there once."""
    first = torch.from_numpy(arrays[0][:1].copy())
    whole = torch.empty((sum(map(len, arrays)), *first.shape[1:]), dtype=first.dtype, device=device)
    done = 0
    for array in arrays:
        for part in in_batches(array, _COPY_ROWS):
            whole[done : done + len(part)].copy_(torch.from_numpy(np.array(part)))
            done += len(part)
    return whole


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
                arrays[name][done : done + len(batch)] = values.half().cpu().numpy()
            done += len(batch)
            progress(done, 0.0)
        for array in arrays.values():
            array.flush()  # type: ignore[attr-defined]  # it is a memmap
        index.write_text(json.dumps({"rows": done, "maps": sorted(arrays)}))
    facts = json.loads(index.read_text())
    return FeatureStore(
        {name: np.load(folder / f"{name}.npy", mmap_mode="r")[: facts["rows"]] for name in facts["maps"]}
    )


def in_batches(array: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    """Rows of an array, `size` at a time."""
    for start in range(0, len(array), size):
        yield array[start : start + size]
