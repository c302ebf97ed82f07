"""Values that cross the border between `models` and `app`.

Letters: B batch, C channels, H W pixels, h w features, D embedding, J joined features, N classes, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch  # decoder processes and the command line import this module and must not load torch


Vectors = NDArray[np.float32]
LARGE_PARAMETERS = 100_000_000
"""Networks with more take seconds an image on a CPU: recording a pass of Stable Diffusion 1.5 took six minutes of CPU
and gained nothing, and packed weights are a copy per image size (docs/adr/0048). `mini` has 10 million."""
MAX_TILES = 16
"""Tiles of an image beside the whole of it, where a bundle names no other number."""
FEATURES = ("semantic", "visual", "dense")
"""Features of an image, which every bundle has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Input of one device pass over images.

    Attributes:
        pixels: [B, 3, H, W] float32 in [-1, 1], RGB, at the bundle's resolution.
        timesteps: [B] int64, the diffusion time step of each sample.
        captions: B captions; None asks the bundle's captioner, or stands for the empty prompt if it has none.
        needs_dense: whether anyone reads `dense`, which may cost more than the rest.
        is_reproducible: the pass has a fixed size, so that bits do not depend on the load; nor on earlier passes.
    """

    pixels: torch.Tensor
    timesteps: torch.Tensor
    captions: Sequence[str | None]
    needs_dense: bool = True
    is_reproducible: bool = False


def to_unit_batch(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Returns `ImageBatch.pixels`, laid out in memory as [B, H, W, 3], from B × [H, W, 3] uint8 RGB."""
    unit = np.stack(images).astype(np.float32)
    # Divided before subtracting, in place: other orders round otherwise.
    unit /= np.float32(127.5)
    unit -= np.float32(1)
    return unit.transpose(0, 3, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatures:
    """Output of one device pass over images: the three features of each.

    Attributes:
        pooled: [B, D] float32, unit length: the `semantic` feature, in the text space.
        visual: [B, V] float32, unit length: looks rather than meaning, comparable between images only.
        dense: [B, D, h, w] float32, not normalised: the high-resolution map, in the text space; [B, D, 0, 0] if the
            batch does not need it.
    """

    pooled: torch.Tensor
    visual: torch.Tensor
    dense: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFeatures:
    """Embeddings of strings: `pooled` [B, D] float32, unit length, in the space of `ImageFeatures.pooled`."""

    pooled: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorLayout:
    """Where the features of an image lie in a vector of J numbers: one slice of unit length each.

    Stored vectors have no weights, so that a bundle may change them without a change of what is stored.

    Attributes:
        slices: by feature, one after another; `semantic` is first where it is part of the vector.
        weights: [J] float32: in the similarity of two images, each number has the weight of its feature.
    """

    slices: Mapping[str, slice]
    weights: Vectors

    @property
    def query_weights(self) -> Vectors | None:
        """[2, J] float32, the weights of queries by sketch or text and by image; None for vectors of one feature."""
        if len(self.slices) == 1:
            return None
        return np.stack([self.spread("semantic", np.ones(self.slices["semantic"].stop, np.float32)), self.weights])

    def joined(self, *, semantic: Vectors, visual: Vectors) -> Vectors:
        """Returns vectors to store, [..., J], from the features of images, [..., D] each."""
        found = {"semantic": semantic, "visual": visual}
        parts = [found[name] for name in self.slices]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def spread(self, name: str, vectors: Vectors) -> Vectors:
        """Returns queries by one feature, [..., J], zero in all other slices, from vectors [..., D] of it."""
        if len(self.slices) == 1:
            return vectors
        queries = np.zeros((*vectors.shape[:-1], len(self.weights)), np.float32)
        queries[..., self.slices[name]] = vectors
        return queries

    def weighted(self, vectors: Vectors) -> Vectors:
        """Returns queries by images, [..., J]: inner products with stored vectors are weighted sums of cosines."""
        return vectors if len(self.slices) == 1 else vectors * self.weights

    def unit(self, vectors: Vectors) -> Vectors:
        """Returns unit vectors, [..., J], from stored ones: cosines are weighted sums of the features' cosines."""
        return vectors if len(self.slices) == 1 else vectors * np.sqrt(self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProfile:
    """How a bundle serves one task.

    Attributes:
        resolution: side of the square that the encoder takes, px.
        timestep: diffusion time step.
        templates: prompt templates for names, each with one `{}`.
        tile: side of the square of an image that a tile of its masks shows, px; None for `resolution`.
        max_tiles: largest number of tiles of an image.
        features: those that the task's vectors hold, in order, with their weights in the similarity of two images,
            which sum to one.
    """

    resolution: int
    timestep: int
    templates: tuple[str, ...]
    tile: int | None = None
    max_tiles: int = MAX_TILES
    features: Mapping[str, float] = field(default_factory=lambda: {"semantic": 1.0})

    @property
    def tile_side(self) -> int:
        """Side of the square of an image that a tile shows, px."""
        return self.tile or self.resolution


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInfo:
    """Description of a loaded bundle, for `GET /bundle` and for tasks.

    Attributes:
        dimension: D, of `ImageFeatures.pooled` and `ImageFeatures.dense`.
        parameters: of the networks that a pass over images runs.
        visual_dimension: V, of `ImageFeatures.visual`; 0 where the bundle has no such feature.
        features: names of the features that the bundle has.
        is_training_free: whether the features come from frozen models alone, without trained heads.
    """

    name: str
    fingerprint: str
    dimension: int
    device: str  # as torch names it
    dtype: str  # fp32, bf16 or fp16
    captioner: str
    tasks: Mapping[str, TaskProfile]
    manifest: Mapping[str, object]
    parameters: int = 0
    visual_dimension: int = 0
    features: tuple[str, ...] = ("semantic", "dense")
    is_training_free: bool = False

    def layout(self, task: str) -> VectorLayout:
        """Returns how a task's vectors are laid out and compared."""
        weights, lengths = self.tasks[task].features, {"semantic": self.dimension, "visual": self.visual_dimension}
        ends = np.cumsum([lengths[name] for name in weights]).tolist()
        return VectorLayout(
            slices={name: slice(end - lengths[name], end) for name, end in zip(weights, ends, strict=True)},
            weights=np.concatenate([np.full(lengths[name], weight, np.float32) for name, weight in weights.items()]),
        )

    def needs_dense(self, task: str) -> bool:
        """Returns whether a task's passes compute `dense`, which only masks read.

        Trained heads compute it in any case, so other tasks with the view of masks compute it too: one pass serves all.
        """
        own, masks = self.tasks[task], self.tasks["segmentation"]
        is_same_view = (own.resolution, own.timestep) == (masks.resolution, masks.timestep)
        return task == "segmentation" or (is_same_view and not self.is_training_free)
