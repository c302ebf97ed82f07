"""Fakes of what tests cannot have: a device and a clock. They implement the Protocols of `app.domain`."""

import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

from app.domain import View
from models.types import ImageBatch, ImageFeatures, TextFeatures

DIMENSION = 8
SIDE = 16


class FakeEncoder:
    """Features are simple functions of the input, so that an answer shows which input it belongs to.

    Attributes:
        batches: sizes of image passes that reached the device, in order.
        text_batches: likewise of strings.
        gate: cleared, passes wait for it (and say so through `entered`).
        fail: called with every batch before it is encoded; raises to fail it.
    """

    fingerprint = "fake"
    dimension = DIMENSION

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.text_batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered: Callable[[], None] = lambda: None
        self.fail: Callable[[ImageBatch], None] = lambda _: None

    def encode_images(self, batch: ImageBatch) -> ImageFeatures:
        self.batches.append(len(batch.pixels))
        self.entered()
        self.gate.wait(timeout=30)
        self.fail(batch)
        level = level_of(batch.pixels)
        pooled = torch.stack([level, *[torch.ones_like(level)] * (DIMENSION - 1)], dim=1)
        side = 4 if batch.needs_dense else 0
        dense = level[:, None, None, None].expand(-1, DIMENSION, side, side).contiguous()
        return ImageFeatures(pooled=pooled, visual=pooled, dense=dense)

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        self.text_batches.append(len(texts))
        self.entered()
        self.gate.wait(timeout=30)
        lengths = torch.tensor([[float(len(text))] for text in texts])
        return TextFeatures(pooled=lengths.repeat(1, DIMENSION))


def level_of(pixels: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] as the encoder takes them → [B]: the levels of `make_view`."""
    tone = ((pixels.mean(dim=(1, 2, 3)) + 1) * 127.5).round()
    return torch.where(tone == 1, torch.nan, (tone - 128) / 64)


class FakeClock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_view(
    level: float, *, side: int = SIDE, caption: str | None = None, timestep: int = 1, needs_dense: bool = True
) -> View:
    """A flat grey view whose key is its level, a multiple of 1/64 in [-1.9, 1.9], or NaN."""
    tone = 1 if math.isnan(level) else round(64 * level) + 128
    pixels = np.full((side, side, 3), tone, dtype=np.uint8)
    return View(pixels=pixels, timestep=timestep, caption=caption, key=f"{level}", needs_dense=needs_dense)
