"""Features that evaluations compare: of bundles, of HOG and of the untrained expert, each computed once.

Caches never go stale: another data set, canonical form or model has another file name.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.feature import hog
from torch import nn

from models.bundle.build import LoadedBundle
from models.bundle.manifest import ExpertPart, Manifest
from models.bundle.parts import load_expert
from models.errors import BundleError
from models.transforms import PREPROCESSING_VERSION, canonical_image, to_unit
from models.types import ImageBatch
from training.data.dataset import SIDE, DataSet, ImageRecord
from training.evaluation.retrieval import Embed, in_batches, unit_length
from training.prior.corpus import to_tensor

DEFAULT_CACHE = Path("~/.cache/vermouth/eval")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One line of a table."""

    name: str  # in the table
    embed: Embed  # all images of a side to features
    canonical: bool = True  # sees canonical sketches as the service does, else images as rendered
    centred: bool = False  # its features lose their mean, see `retrieval.scores`
    side: int = SIDE  # of the images it sees, px


class EvaluationCache:
    """Arrays on disk, named after everything they depend on.

    Args:
        folder: of the cache, created on first use.
        form: version of canonical images: the data set's and the preprocessing's.
    """

    def __init__(self, folder: Path, form: str) -> None:
        self._folder = folder
        self._form = form

    def images(self, data: DataSet, records: Sequence[ImageRecord], side: int = SIDE) -> NDArray[np.uint8]:
        """Canonical images of some records, [len(records), side, side, 3] uint8."""
        shape, form = (len(data.images), side, side, 3), f"{self._form}{_at(side)}"
        cached = self._shared(f"pictures-{form}.npy", shape)
        done = self._shared(f"pictures-{form}-done.npy", shape[:1])
        for record in records:
            if not done[record.row]:
                cached[record.row] = canonical_image(np.asarray(data.pixels[record.row]), side)
                done[record.row] = 1
        return np.asarray(cached[[record.row for record in records]])

    def canonical(
        self, rasters: Callable[[], Sequence[NDArray[np.uint8]]], name: str, side: int = SIDE
    ) -> NDArray[np.uint8]:
        """Canonical images of rasters, [N, side, side, 3] uint8; `name` distinguishes them from all others."""
        return self._array(
            f"{_digest(name)}-{self._form}{_at(side)}",
            lambda: np.stack([canonical_image(raster, side) for raster in rasters()]),
        )

    def drawn(self, name: str, side: int, draw: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """What `draw` returns for a side, [N, side, side, 3] uint8; `name` distinguishes it from all others."""
        return self._array(f"{_digest(name)}-{self._form}-{side}", lambda: draw(side))

    def features(self, model: str, embed: Embed, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[N, D] float32 features of [N, H, W, 3] uint8 images, computed a batch at a time.

        `model` names everything the features depend on: a bundle's fingerprint, its task and time step.
        """
        contents = hashlib.sha256(repr(pixels.shape).encode())
        contents.update(np.ascontiguousarray(pixels).data)
        name = f"features-{_digest(model)}-{contents.hexdigest()[:20]}"
        return self._array(name, lambda: in_batches(embed, pixels))

    def _array(self, name: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        file = self._folder / f"{name}.npy"
        if not file.is_file():
            values = compute()
            self._replace(file, lambda part: _save(part, values))
        return np.asarray(np.load(file))

    def _shared(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of zeros at first, memory-mapped so that several commands can fill it together."""
        file = self._folder / name
        if not file.is_file():
            self._replace(
                file, lambda part: np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape).flush()
            )
        shared: NDArray[np.uint8] = np.load(file, mmap_mode="r+")
        return shared

    def _replace(self, file: Path, write: Callable[[Path], None]) -> None:
        """Write a file under a name of this process, then rename it, so that no other one reads half of it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        write(part)
        part.replace(file)


def open_cache(data_set: Path, folder: Path = DEFAULT_CACHE) -> EvaluationCache:
    """The cache of a data set, by the digest of its manifest."""
    manifest = (data_set.expanduser() / "manifest.json").read_bytes()
    form = f"{hashlib.sha256(manifest).hexdigest()[:12]}-v{PREPROCESSING_VERSION}"
    return EvaluationCache(folder.expanduser(), form)


def _at(side: int) -> str:
    return "" if side == SIDE else f"-{side}"


def _save(path: Path, values: NDArray[Any]) -> None:
    with path.open("wb") as file:  # numpy would add .npy to a name
        np.save(file, values)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def trained(loaded: LoadedBundle, cache: EvaluationCache, task: str, heads: str) -> Contender:
    """A bundle with its heads (`zero-shot` or `release`), as served at the task's time step.

    Of `fewshot` with the features that compare images; sketches and images of `retrieval` have `semantic` in common.
    """
    profile = loaded.info.tasks[task]
    timestep = profile.timestep
    layout = loaded.info.layout(task) if task == "fewshot" else None

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        views = torch.from_numpy(np.stack([to_unit(image) for image in pixels]))
        found = loaded.encoder.encode_images(plain_batch(views, timestep))
        semantic, visual = found.pooled.numpy(), found.visual.numpy()
        return semantic if layout is None else layout.unit(layout.joined(semantic=semantic, visual=visual))

    by = "" if layout is None or list(profile.features) == ["semantic"] else f" by {sorted(profile.features.items())}"
    cached = _cached(cache, f"{loaded.info.fingerprint} at {timestep}{by}", embed)
    return Contender(name=f"{loaded.info.name} ({heads} heads)", embed=cached, side=profile.resolution)


def untrained(expert: nn.Module | None, part: ExpertPart | None, cache: EvaluationCache) -> tuple[Contender, ...]:
    """HOG and the expert without training, plain and in the form that suits each best.

    Args:
        expert: frozen, without a bundle's adapters.
        part: its source, which identifies its cached features.
        cache: of features.
    """
    averaged = _cached(cache, repr(part), expert_embedding(expert))
    gradients = _cached(cache, "hog 8/16/2", hog_embedding)
    return (
        Contender(name="HOG", embed=gradients),
        Contender(name="HOG, centred", embed=gradients, centred=True),
        Contender(name="expert, no training", embed=averaged),
        # The floor that the protocols' authors measured.
        Contender(name="expert, no training, plain, centred", embed=averaged, canonical=False, centred=True),
    )


def untrained_of(loaded: LoadedBundle, cache: EvaluationCache) -> tuple[Contender, ...]:
    """`untrained` with a bundle's expert as it was before its adapters were trained."""
    part = Manifest.model_validate(loaded.info.manifest).components.expert
    return untrained(load_expert(part, loaded.folder).eval() if part is not None else None, part, cache)


def _cached(cache: EvaluationCache, model: str, embed: Embed) -> Embed:
    return lambda pixels: cache.features(model, embed, pixels)


def plain_batch(views: torch.Tensor, timestep: int) -> ImageBatch:
    """Views [B, 3, H, W] without captions, at one time step."""
    return ImageBatch(pixels=views, timesteps=torch.full((len(views),), timestep), captions=[None] * len(views))


def hog_embedding(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[B, 128, 128, 3] uint8 → [B, D] float32, unit length: 8 orientations, cells of 16 px, blocks of 2."""
    found = [hog(p.mean(axis=2), orientations=8, pixels_per_cell=(16, 16), cells_per_block=(2, 2)) for p in pixels]
    return unit_length(np.stack(found).astype(np.float32))


def expert_embedding(expert: nn.Module | None) -> Embed:
    """The expert's last map, averaged over its cells: features available without training.

    Raises:
        BundleError: on use, when there is no expert.
    """

    @torch.inference_mode()
    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if expert is None:
            raise BundleError("this bundle has no expert to compare with")
        return unit_length(expert(to_tensor(pixels))[-1].mean(dim=(2, 3)).numpy())

    return embed
