"""The ways to compute that are compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.serve.workload import BUNDLE
from models.bundle.build import load_bundle
from models.encoder import Encoder
from models.types import ImageBatch

SIDE, TIMESTEP = 128, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A dtype of the service, and whether convolutions may round float32 to TF32; matrix products never do."""

    name: str
    dtype: str
    has_tf32: bool = True


PRECISIONS = (
    Precision(name="fp32", dtype="fp32"),
    Precision(name="fp16", dtype="fp16"),
    Precision(name="bf16", dtype="bf16"),
    Precision(name="fp32, no TF32", dtype="fp32", has_tf32=False),
)
"""The first is what `VERMOUTH_DTYPE=fp32` does, as torch sets itself; the second what `auto` does on a GPU."""


@contextmanager
def encoder_of(precision: Precision, device: str) -> Iterator[Encoder]:
    """The mini bundle's encoder on a device; torch's own flag comes back afterwards."""
    cudnn: Any = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, precision.has_tf32
    try:
        yield load_bundle(BUNDLE, device=device, dtype=precision.dtype).encoder
    finally:
        cudnn.allow_tf32 = before


def batch_of(pixels: torch.Tensor) -> ImageBatch:
    """[B, 3, H, W] in [-1, 1] with the bundle's own time step and conditioning."""
    count = len(pixels)
    return ImageBatch(pixels=pixels, timesteps=torch.full((count,), TIMESTEP), captions=[None] * count)


def synchronise(device: str) -> None:
    """Wait for the device; the CPU is never behind."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
