"""Frozen maps of N views: on disk, one memory-mapped float16 array a map; on the device that trains, read by row."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.bundle.pack import mini_uhead_shape
from training.devices import half_on_gpu, to_input
from training.loop import Progress

Maps = Mapping[str, torch.Tensor]  # frozen maps by name: [B, C, h, w] float32; `sd.<tap>` and `expert.<level>`
Arrays = Mapping[str, NDArray[np.float16]]  # the same on disk: [N, C, h, w], memory-mapped

EXPERT_CELLS, TAP_CELLS = "expert.cells", "sd.cells"
"""Cells of a view that a U-head's pool reads, in two maps because taps change more often."""
CLASS_FEATURES = "class.features"  # means of the features that the expert's classifier reads, [B, F, 1, 1]
CLASS_MAP = "class.map"  # the expert's last level, from which the classifier makes features
_COPY_ROWS = 4096  # copied to the device at once
_SAVED_ROWS = 512  # encoded between two notes of how far a store is


class DeviceStore:
    """Maps of N views on one device, read by row."""

    def __init__(self, maps: Mapping[str, torch.Tensor], blank: str | None = None) -> None:
        self._maps = dict(maps)
        self._blank = blank

    @classmethod
    def joined(cls, stores: Sequence[Arrays], device: torch.device) -> "DeviceStore":
        """Several stores of the same maps as one, read from disk once, rows one after the other."""
        return cls({name: joined([arrays[name] for arrays in stores], device) for name in stores[0]})

    def __len__(self) -> int:
        return len(next(iter(self._maps.values())))

    def blank(self, prefix: str) -> "DeviceStore":
        """The store with maps whose name starts with `prefix` reading as zeros."""
        return DeviceStore(self._maps, prefix)

    def replaced(self, maps: Mapping[str, torch.Tensor]) -> "DeviceStore":
        """The store with some maps replaced or added."""
        return DeviceStore({**self._maps, **maps}, self._blank)

    def shape(self, name: str) -> torch.Size:
        """Shape of one of the maps, rows first."""
        return self._maps[name].shape

    @property
    def device(self) -> torch.device:
        """Device of the maps."""
        return next(iter(self._maps.values())).device

    def only(self, *names: str) -> "DeviceStore":
        """The store with some of its maps."""
        return DeviceStore({name: self._maps[name] for name in names}, self._blank)

    def read(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The maps of some rows, [len(rows), …] float32 each, maps channels last; `rows` is on `device`."""
        found = {}
        for name, values in self._maps.items():
            if self._blank is not None and name.startswith(self._blank):
                # Zeros of the same shape: heads on fewer features have the same weights (docs/adr/0014).
                found[name] = torch.zeros((len(rows), *values.shape[1:]), device=values.device)
            else:
                read = values[rows].float()
                found[name] = read.contiguous(memory_format=torch.channels_last) if read.ndim == 4 else read
        return found


class AdaptedCells:
    """Cells of views for an expert that learns: taps are cached, the expert's cells computed.

    Args:
        expert: in eval mode, on the pixels' device. Gradients reach it.
        taps: store of the views' `TAP_CELLS`.
        pixels: [N, 128, 128, 3] uint8.
    """

    def __init__(self, expert: nn.Module, taps: DeviceStore, pixels: torch.Tensor) -> None:
        self._expert = expert
        self._taps = taps.only(TAP_CELLS)
        self._pixels = pixels

    def read(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """As `DeviceStore.read`."""
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
    inputs: NDArray[Any],
    *,
    size: int,
    extract: Callable[[NDArray[Any]], Maps],
    progress: Progress,
    room: int = 0,
) -> Arrays:
    """Encode every input once; rows that earlier calls encoded are opened, also those of one that was interrupted.

    Args:
        folder: of this store; its index.json says how many rows are encoded.
        inputs: [N, …] of the frozen network.
        size: inputs encoded at once.
        extract: the frozen network: [B, …] → maps.
        progress: called with (rows done, 0).
        room: rows that later calls with more inputs may need; they take no space until then.
    """
    index = folder / "index.json"
    done = int(json.loads(index.read_text())["rows"]) if index.is_file() else 0
    if done < len(inputs):
        folder.mkdir(parents=True, exist_ok=True)
        saved = done
        arrays = _opened(folder, "r+") if done else {}
        for batch in in_batches(inputs[done:], size):
            for name, values in extract(batch).items():
                if name not in arrays:
                    file, shape = folder / f"{name}.npy", (max(room, len(inputs)), *values.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
                arrays[name][done : done + len(batch)] = values.half().cpu().numpy()
            done += len(batch)
            if done - saved >= _SAVED_ROWS or done == len(inputs):
                for array in arrays.values():
                    array.flush()  # type: ignore[attr-defined]  # a memory map
                # Written after the rows: others are encoded again.
                index.write_text(json.dumps({"rows": done, "maps": sorted(arrays)}))
                saved = done
            progress(done, 0.0)
    return {name: array[:done] for name, array in _opened(folder, "r").items()}


def _opened(folder: Path, mode: Literal["r", "r+"]) -> dict[str, NDArray[np.float16]]:
    names = json.loads((folder / "index.json").read_text())["maps"]
    return {name: np.load(folder / f"{name}.npy", mmap_mode=mode) for name in names}


def in_batches(array: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    """Yield rows of an array, `size` at a time."""
    for start in range(0, len(array), size):
        yield array[start : start + size]
