"""Frozen maps of N views: on disk, one memory-mapped float16 array a map; on the device that trains, read by row."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.bundle.pack import mini_uhead_shape
from training.devices import half_on_gpu, to_input
from training.loop import Progress

Maps = Mapping[str, torch.Tensor]  # frozen maps by name: [B, C, h, w] float32; `sd.<tap>` and `expert.<level>`

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
        """Device of the maps."""
        ...

    def read(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The maps of some rows, [len(rows), C, h, w] float32 each, channels last; `rows` is on `device`."""
        ...


class FeatureStore:
    """Frozen maps on disk, [N, C, h, w] float16 by name."""

    def __init__(self, arrays: Mapping[str, NDArray[np.float16]]) -> None:
        self.arrays = dict(arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __or__(self, other: "FeatureStore") -> "FeatureStore":
        """Both stores' maps of the same rows."""
        return FeatureStore({**self.arrays, **other.arrays})

    def without(self, name: str) -> "FeatureStore":
        """The store without one map."""
        return FeatureStore({key: array for key, array in self.arrays.items() if key != name})


class DeviceStore:
    """Maps on one device, read by row; a MapReader."""

    def __init__(self, maps: Mapping[str, torch.Tensor], blank: str | None = None) -> None:
        self._maps = dict(maps)
        self._blank = blank

    @classmethod
    def joined(cls, stores: Sequence[FeatureStore], device: torch.device) -> "DeviceStore":
        """Several stores of the same maps as one, read from disk once, rows one after the other."""
        return cls({name: joined([store.arrays[name] for store in stores], device) for name in stores[0].arrays})

    def __len__(self) -> int:
        return len(next(iter(self._maps.values())))

    def blank(self, prefix: str) -> "DeviceStore":
        """The store with maps whose name starts with `prefix` reading as zeros."""
        return DeviceStore(self._maps, prefix)

    def replaced(self, maps: Mapping[str, torch.Tensor]) -> "DeviceStore":
        """The store with some maps replaced by those of the same name."""
        return DeviceStore({**self._maps, **maps}, self._blank)

    @property
    def device(self) -> torch.device:
        """Device of the maps."""
        return next(iter(self._maps.values())).device

    def only(self, *names: str) -> "DeviceStore":
        """The store with some of its maps."""
        return DeviceStore({name: self._maps[name] for name in names}, self._blank)

    def read(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `MapReader`."""
        found = {}
        for name, values in self._maps.items():
            if self._blank is not None and name.startswith(self._blank):
                found[name] = torch.zeros((len(rows), *values.shape[1:]), device=values.device)
            else:
                found[name] = values[rows].float().contiguous(memory_format=torch.channels_last)
        return found


class AdaptedCells:
    """Cells of views for an expert that learns: taps are cached, the expert's cells computed; a MapReader.

    Args:
        expert: in eval mode, on the pixels' device. Gradients reach it.
        taps: store of the views' `TAP_CELLS`.
        pixels: [N, 128, 128, 3] uint8.
    """

    def __init__(self, expert: nn.Module, taps: DeviceStore, pixels: torch.Tensor) -> None:
        self._expert = expert
        self._taps = taps.only(TAP_CELLS)
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def device(self) -> torch.device:
        """Device of the maps."""
        return self._pixels.device

    def read(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `MapReader`."""
        pixels = to_input(self._pixels[rows])
        with half_on_gpu(pixels.device):
            levels = [level.float() for level in self._expert(pixels)]
        return {**self._taps.read(rows), EXPERT_CELLS: mini_uhead_shape().expert_cells(levels)}


def joined(arrays: Sequence[NDArray[Any]], device: torch.device) -> torch.Tensor:
    """Arrays of equal rows as one tensor on a device, rows one after the other."""
    first = torch.from_numpy(arrays[0][:1].copy())
    # Copied in parts: the maps are gigabytes and must not be in memory twice.
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
    *,
    limit: int,
    extract: Callable[[NDArray[Any]], Maps],
    progress: Progress,
) -> FeatureStore:
    """Encode every batch once, or open what an earlier call finished.

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
        arrays: dict[str, np.memmap[Any, np.dtype[np.float16]]] = {}
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
            array.flush()
        index.write_text(json.dumps({"rows": done, "maps": sorted(arrays)}))
    finished = json.loads(index.read_text())
    return FeatureStore(
        {name: np.load(folder / f"{name}.npy", mmap_mode="r")[: finished["rows"]] for name in finished["maps"]}
    )


def in_batches(array: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    """Yield rows of an array, `size` at a time."""
    for start in range(0, len(array), size):
        yield array[start : start + size]
