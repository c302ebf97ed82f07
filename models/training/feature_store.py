"""Frozen features on disk: one memory-mapped array a map, float16."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

Maps = Mapping[str, torch.Tensor]
"""Frozen maps by name: [B, C, h, w] float32; `sd.<tap>` and `expert.<level>`."""

_BATCH = 32


class FeatureStore:
    """Frozen maps of N views, read by row."""

    def __init__(self, arrays: Mapping[str, NDArray[np.float16]]) -> None:
        self._arrays = dict(arrays)

    def read(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The maps of some rows, [len(rows), C, h, w] float32 each."""
        return {name: torch.from_numpy(array[rows].astype(np.float32)) for name, array in self._arrays.items()}


def build_store(
    folder: Path,
    pixels: Iterator[NDArray[np.uint8]],
    limit: int,
    extract: Callable[[NDArray[np.uint8]], Maps],
    progress: Callable[[int, float], None],
) -> FeatureStore:
    """Encodes every picture once, or opens what an earlier call finished.

    Args:
        folder: of this store; finished when it holds index.json.
        pixels: [128, 128, 3] uint8 pictures, at most `limit`.
        limit: rows to reserve.
        extract: the frozen encoder: [B, 128, 128, 3] uint8 → maps.
        progress: called with (rows done, 0).
    """
    index = folder / "index.json"
    if not index.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[np.float16]] = {}
        done = 0
        for batch in _batches(pixels):
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
        index.write_text(json.dumps({"rows": done, "maps": sorted(arrays)}))
    facts = json.loads(index.read_text())
    return FeatureStore(
        {name: np.load(folder / f"{name}.npy", mmap_mode="r")[: facts["rows"]] for name in facts["maps"]}
    )


def _batches(pixels: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    batch: list[NDArray[np.uint8]] = []
    for picture in pixels:
        batch.append(picture)
        if len(batch) == _BATCH:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
