"""The nouns of the service, free of web, SQL, FAISS and torch kernels."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.types import MAX_TILES, ImageBatch, ImageFeatures, TextFeatures
from models.types import BundleInfo as BundleInfo

MEGAPIXEL = 1_000_000
MIB = 1 << 20
MAX_JSON_VALUES = 250_000
"""By default: parsing so many holds Python's interpreter lock, and with it all other requests, for up to 20 ms."""
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1
"""Of metadata and filters: exact in both databases."""
_EXACT_FLOAT = 2**53  # a float from here on is an integer, which its shortest decimal form may not be
HOUSE: dict[str, Any] = {
    "strokes": [
        [[40, 40, 210, 210, 40], [120, 230, 230, 120, 120]],
        [[25, 125, 225], [120, 30, 120]],
        [[105, 105, 145, 145], [230, 170, 170, 230]],
    ],
    "width": 256,
    "height": 256,
}
"""A house drawn as strokes, for examples."""


class Encoder(Protocol):
    """The two device operations; implemented by `models.encoder.Encoder` and by test fakes."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that shapes a feature."""

    @property
    def dimension(self) -> int:
        """D, the length of `pooled`."""

    def encode_images(self, batch: ImageBatch) -> ImageFeatures:
        """One pass over B images; only the executor's threads call it."""

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embeddings of B strings; only the executor's threads call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One encoder input: what a task submits to the engine.

    Attributes:
        pixels: [H, W, 3] uint8 RGB, at the bundle's resolution.
        timestep: diffusion time step.
        caption: None for the bundle's own conditioning.
        key: identity for the feature cache: views with equal pixels have equal keys.
        is_reproducible: computed in a pass of fixed size, so that its bits do not depend on the load.
        needs_dense: whether the caller reads `dense`, or another task that looks at the same view may do so soon.
    """

    pixels: NDArray[np.uint8]
    timestep: int
    caption: str | None
    key: str
    is_reproducible: bool = False
    needs_dense: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The engine's answer for one view or one string. Callers share the arrays: never write into them.

    Attributes:
        pooled: [D] float32, unit length: the `semantic` feature.
        visual: [V] float32, unit length; [0] for a string.
        dense: [D, h, w] float32; [D, 0, 0] for a string and for a view that needs none.
        queue_ms: time in the queue before the device pass; 0 for cached features.
        inference_ms: time of the device pass, from when this caller joined it; 0 for cached features.
    """

    pooled: NDArray[np.float32]
    visual: NDArray[np.float32]
    dense: NDArray[np.float32]
    queue_ms: float = 0.0
    inference_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that one request may ask for; a nested part of the settings (`VERMOUTH_LIMITS__MAX_K`)."""

    max_body_bytes: Annotated[int, Field(ge=1024, le=4096 * MIB)] = 32 * MIB
    max_form_field_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = 8 * MIB
    max_json_values: Annotated[int, Field(ge=100, le=100_000_000)] = MAX_JSON_VALUES
    max_form_parts: Annotated[int, Field(ge=1, le=100_000)] = 2048
    max_image_pixels: Annotated[int, Field(ge=1, le=1024 * MEGAPIXEL)] = 64 * MEGAPIXEL
    max_request_pixels: Annotated[int, Field(ge=1, le=16384 * MEGAPIXEL)] = 256 * MEGAPIXEL
    max_request_images: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_canvas_side: Annotated[int, Field(ge=16, le=16384)] = 4096
    max_points: Annotated[int, Field(ge=1, le=10_000_000)] = 50_000
    max_k: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_classes: Annotated[int, Field(ge=1, le=255)] = 255
    max_segment_strings: Annotated[int, Field(ge=1, le=100_000)] = 2048
    max_tiles: Annotated[int, Field(ge=0, le=256)] = MAX_TILES
    max_stitch_bytes: Annotated[int, Field(ge=MIB, le=65536 * MIB)] = 256 * MIB
    max_ways: Annotated[int, Field(ge=2, le=100_000)] = 512
    max_support_per_way: Annotated[int, Field(ge=1, le=10_000)] = 64
    max_queries: Annotated[int, Field(ge=1, le=10_000)] = 256
    max_items_per_call: Annotated[int, Field(ge=1, le=10_000)] = 256
    max_metadata_bytes: Annotated[int, Field(ge=2, le=16 * MIB)] = 16 * 1024


def label_key(label: str) -> str:
    """Return what labels are compared by: one label has composed or separate accents, and no spaces around it."""
    return unicodedata.normalize("NFC", label).strip()


def exact_number(value: float) -> int | float:
    """Return a float that is an integer of 64 bits, and too large for its decimal form to be exact, as an integer.

    SQLite compares a float by its binary value, PostgreSQL by its decimal form.
    """
    is_integer = abs(value) >= _EXACT_FLOAT and MIN_INTEGER <= value < MAX_INTEGER
    return int(value) if is_integer else value


def exact_metadata(metadata: Mapping[str, object]) -> dict[str, object]:
    """Return metadata as it is stored: each float as `exact_number`."""
    return {name: _exact(value) for name, value in metadata.items()}


def _exact(value: object) -> object:
    if isinstance(value, float):
        return exact_number(value)
    if isinstance(value, Mapping):
        return exact_metadata(value)
    return [_exact(one) for one in value] if isinstance(value, (list, tuple)) else value
