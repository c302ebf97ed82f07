"""The nouns of the service, free of web, SQL, FAISS and torch kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.types import BundleInfo as BundleInfo
from models.types import ImageBatch, ImageFeatures, TextFeatures


class Encoder(Protocol):
    """The two device operations; implemented by `models.encoder.Encoder` and by test fakes."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that shapes a feature."""
        ...

    @property
    def dimension(self) -> int:
        """D, the length of `pooled`."""
        ...

    def encode_images(self, batch: ImageBatch) -> ImageFeatures:
        """One pass over B pictures; call it from the executor's thread alone."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embeddings of B strings; call it from the executor's thread alone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A decoded input image.

    Attributes:
        pixels: [H, W, 3] uint8 RGB; EXIF orientation applied, alpha composited on white.
        sha256: hex digest of shape and pixels, the identity the feature cache uses.
    """

    pixels: NDArray[np.uint8]
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One encoder input: what a task submits to the engine.

    Attributes:
        pixels: [3, H, W] float32 in [-1, 1], RGB, at the bundle's resolution.
        timestep: diffusion time step.
        caption: None for the bundle's own conditioning.
        key: identity for the feature cache (picture digest and tile box).
    """

    pixels: NDArray[np.float32]
    timestep: int
    caption: str | None
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The engine's answer for one `View`.

    Attributes:
        pooled: [D] float32, unit length.
        dense: [D, h, w] float32.
        queue_ms: time waited before the device took it.
        inference_ms: time of the device pass that held it.
    """

    pooled: NDArray[np.float32]
    dense: NDArray[np.float32]
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The engine's answer for a list of strings: `pooled` [B, D] float32, unit length."""

    pooled: NDArray[np.float32]
    queue_ms: float
    inference_ms: float


class FeatureEngine(Protocol):
    """The batching engine as tasks see it."""

    async def encode_views(self, views: Sequence[View], *, timeout_s: float | None = None) -> list[Features]:
        """Features of every view, in order.

        Raises:
            app.errors.QueueFull, DeadlineExceeded, EngineUnavailable, InferenceFailed.
        """
        ...

    async def encode_texts(self, texts: Sequence[str], *, timeout_s: float | None = None) -> Embeddings:
        """Embeddings of every string, in order. Raises as `encode_views`."""
        ...
