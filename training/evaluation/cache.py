"""What evaluations compute once and keep on disk: canonical pictures, and features of them.

Canonical forms are kept by picture, under the data set's digest and the version of the form; features under the
digest of the model that made them and of the pictures they were made from. Nothing here is ever stale: another
data set, form or model has another name.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.transforms import PREPROCESSING_VERSION, canonical_image
from training.data.dataset import DataSet, PictureRecord
from training.evaluation.retrieval import Embed, in_batches

DEFAULT_CACHE = Path("~/.cache/vermouth/eval")

_SIDE = 128


class EvaluationCache:
    """Arrays on disk by what they were made from.

    Args:
        folder: of the cache; made on first use.
        form: what canonical pictures depend on: the data set and the version of the form.
    """

    def __init__(self, folder: Path, form: str) -> None:
        self._folder = folder
        self._form = form

    def pictures(self, data: DataSet, records: Sequence[PictureRecord]) -> NDArray[np.uint8]:
        """Canonical forms of some pictures, [len(records), 128, 128, 3] uint8; each is made once."""
        shape = (len(data.pictures), _SIDE, _SIDE, 3)
        kept = self._shared(f"pictures-{self._form}.npy", shape)
        done = self._shared(f"pictures-{self._form}-done.npy", shape[:1])
        for record in records:
            if not done[record.row]:
                kept[record.row] = canonical_image(np.asarray(data.pixels[record.row]))
                done[record.row] = 1
        return np.asarray(kept[[record.row for record in records]])

    def canonical(self, rasters: Callable[[], Sequence[NDArray[np.uint8]]], name: str) -> NDArray[np.uint8]:
        """Canonical forms of rasters that `name` tells apart from all others."""

        def make() -> NDArray[np.uint8]:
            return np.stack([canonical_image(raster) for raster in rasters()])

        return self._array(f"{_digest(name)}-{self._form}", make)

    def features(self, model: str, embed: Embed, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of pictures, a batch at a time, or those that were kept.

        Args:
            model: what shapes the features: a bundle's fingerprint, with its task and time step.
            embed: [B, H, W, 3] uint8 → [B, D] float32.
            pixels: [N, H, W, 3] uint8.
        """

        return self._array(f"features-{_digest(model)}-{pixels_digest(pixels)}", lambda: in_batches(embed, pixels))

    def _array(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        file = self._folder / f"{name}.npy"
        if file.is_file():
            return np.asarray(np.load(file))
        made = make()
        self._folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as out:
            np.save(out, made)
        part.replace(file)
        return made

    def _shared(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of zeros at first, mapped so that several commands fill it together."""
        file = self._folder / name
        if not file.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape).flush()
            part.replace(file)
        shared: NDArray[np.uint8] = np.load(file, mmap_mode="r+")
        return shared


def open_cache(data_set: Path, folder: Path = DEFAULT_CACHE) -> EvaluationCache:
    """The cache of a data set, by the digest of its manifest."""
    manifest = (data_set.expanduser() / "manifest.json").read_bytes()
    form = f"{hashlib.sha256(manifest).hexdigest()[:12]}-v{PREPROCESSING_VERSION}"
    return EvaluationCache(folder.expanduser(), form)


def pixels_digest(pixels: NDArray[np.uint8]) -> str:
    """Twenty hex digits of an array's shape and contents."""
    found = hashlib.sha256(repr(pixels.shape).encode())
    found.update(np.ascontiguousarray(pixels).data)
    return found.hexdigest()[:20]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
