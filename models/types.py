"""Values that cross the border between `models` and `app`.

Letters: B batch, C channels, H W pixels, h w features, D embedding, N classes, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # decoder processes and the command line import this module and must not load torch


FEATURES = ("semantic", "visual", "dense")
"""Features of an image, which every bundle has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Input of one device pass over images.

    Attributes:
        pixels: [B, 3, H, W] float32 in [-1, 1], RGB, at the bundle's resolution.
        timesteps: [B] int64, the diffusion time step of each sample.
        captions: B captions; None asks the bundle's captioner, or stands for the empty prompt if it has none.
    """

    pixels: torch.Tensor
    timesteps: torch.Tensor
    captions: Sequence[str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatures:
    """Output of one device pass over images: the three features of each.

    Attributes:
        pooled: [B, D] float32, unit length: the `semantic` feature, in the text space.
        visual: [B, V] float32, unit length: looks rather than meaning, comparable between images only.
        dense: [B, D, h, w] float32, not normalised: the high-resolution map, in the text space.
    """

    pooled: torch.Tensor
    visual: torch.Tensor
    dense: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFeatures:
    """Embeddings of strings: `pooled` [B, D] float32, unit length, in the space of `ImageFeatures.pooled`."""

    pooled: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProfile:
    """How a bundle serves one task.

    Attributes:
        resolution: side of the square that the encoder takes, px.
        timestep: diffusion time step.
        templates: prompt templates for names, each with one `{}`.
    """

    resolution: int
    timestep: int
    templates: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInfo:
    """Description of a loaded bundle, for `GET /bundle` and for tasks.

    Attributes:
        dimension: D, of `ImageFeatures.pooled` and `ImageFeatures.dense`.
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
    visual_dimension: int = 0
    features: tuple[str, ...] = ("semantic", "dense")
    is_training_free: bool = False
