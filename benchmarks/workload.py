"""The work of one request, the same in every server: decoding, the mini bundle's encoder, the answer."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.report import ROOT
from models.bundle.build import load_bundle
from models.bundle.files import read_manifest
from models.encoder import Encoder
from models.transforms import canonical_image, to_unit
from models.types import ImageBatch

BUNDLE = Path(os.environ.get("BENCH_BUNDLE") or ROOT / "weights" / "mini")
_TASK = read_manifest(BUNDLE).tasks["retrieval"]
SIZE, TIMESTEP = _TASK.resolution, _TASK.timestep
MAX_BATCH = 8


def load_encoder(threads: int) -> Encoder:
    """Return the encoder on the CPU, warmed up for every batch size."""
    torch.set_num_threads(threads)
    encoder = load_bundle(BUNDLE, device="cpu").encoder
    for size in range(1, MAX_BATCH + 1):  # the first pass of a size also records its graph
        embed(encoder, [np.zeros((3, SIZE, SIZE), np.float32)] * size)
    return encoder


def prepare(data: bytes) -> NDArray[np.float32]:
    """Return the encoder's input of a JPEG, [3, SIZE, SIZE] float32 in [-1, 1], RGB."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return to_unit(canonical_image(np.asarray(image.convert("RGB"), np.uint8), SIZE))


def embed(encoder: Encoder, inputs: Sequence[NDArray[np.float32]]) -> list[list[float]]:
    """Return the global features of B inputs, B lists of D numbers."""
    with torch.inference_mode():
        features = encoder.encode_images(batch_of(torch.from_numpy(np.stack(inputs)))).pooled
    rows: list[list[float]] = features.tolist()
    return rows


def batch_of(pixels: torch.Tensor) -> ImageBatch:
    """Return [B, 3, H, W] float32 in [-1, 1] as a batch with the bundle's own time step and no captions."""
    count = len(pixels)
    return ImageBatch(
        pixels=pixels, timesteps=torch.full((count,), TIMESTEP, dtype=torch.int64), captions=[None] * count
    )


def random_batch(count: int) -> ImageBatch:
    """Return a batch of noise, the same for the same count."""
    return batch_of(torch.rand((count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(count)) * 2 - 1)
