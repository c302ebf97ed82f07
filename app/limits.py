"""The bounds of `api.md`, Limits: counts, bytes and work; each over-run has its own clear error."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

MEGAPIXEL = 1_000_000
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for; a nested part of the settings (`VERMOUTH_LIMITS__MAX_K`)."""

    max_body_bytes: Annotated[int, Field(ge=1024, le=4096 * MIB)] = 32 * MIB
    max_form_field_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = 8 * MIB
    max_form_parts: Annotated[int, Field(ge=1, le=100_000)] = 2048
    max_image_pixels: Annotated[int, Field(ge=1, le=1024 * MEGAPIXEL)] = 64 * MEGAPIXEL
    max_request_pixels: Annotated[int, Field(ge=1, le=16384 * MEGAPIXEL)] = 256 * MEGAPIXEL
    max_request_images: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_canvas_side: Annotated[int, Field(ge=16, le=16384)] = 4096
    max_points: Annotated[int, Field(ge=1, le=10_000_000)] = 50_000
    max_k: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_classes: Annotated[int, Field(ge=1, le=255)] = 255
    max_segment_strings: Annotated[int, Field(ge=1, le=100_000)] = 2048
    max_tiles: Annotated[int, Field(ge=0, le=256)] = 16
    max_stitch_bytes: Annotated[int, Field(ge=MIB, le=65536 * MIB)] = 256 * MIB
    max_ways: Annotated[int, Field(ge=2, le=100_000)] = 512
    max_support_per_way: Annotated[int, Field(ge=1, le=10_000)] = 64
    max_queries: Annotated[int, Field(ge=1, le=10_000)] = 256
    max_items_per_call: Annotated[int, Field(ge=1, le=10_000)] = 256
    max_metadata_bytes: Annotated[int, Field(ge=2, le=16 * MIB)] = 16 * 1024
