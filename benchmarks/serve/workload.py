"""What every contender does with a request: the same decoding, the same encoder, the same answer."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.bundle.build import load_bundle
from models.encoder import Encoder
from models.transforms import canonical_image, to_unit
from models.types import ImageBatch

BUNDLE = Path(os.environ.get("BENCH_BUNDLE") or Path(__file__).parents[2] / "weights" / "mini")
SIZE, TIMESTEP = 128, 50
MAX_BATCH = 8


def load_encoder(threads: int) -> Encoder:
    """The mini bundle's encoder on the CPU, warm for every batch size."""
    torch.set_num_threads(threads)
    encoder = load_bundle(BUNDLE, device="cpu").encoder
    for size in range(1, MAX_BATCH + 1):
        embed(encoder, [np.zeros((3, SIZE, SIZE), np.float32)] * size)
    return encoder


def prepare(data: bytes) -> NDArray[np.float32]:
    """JPEG bytes to the encoder's input, [3, 128, 128] float32 in [-1, 1]."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return to_unit(canonical_image(np.asarray(image.convert("RGB"), np.uint8), SIZE))


def embed(encoder: Encoder, inputs: Sequence[NDArray[np.float32]]) -> list[list[float]]:
    """Global features of B inputs."""
    batch = ImageBatch(
        pixels=torch.from_numpy(np.stack(inputs)),
        timesteps=torch.full((len(inputs),), TIMESTEP, dtype=torch.int64),
        captions=[None] * len(inputs),
    )
    with torch.inference_mode():
        found: list[list[float]] = encoder.encode_images(batch).pooled.tolist()
    return found


def file_of(body: bytes) -> bytes:
    """The only part of a multipart body, for servers that hand over raw bytes."""
    boundary, _, rest = body.partition(b"\r\n")
    _, _, content = rest.partition(b"\r\n\r\n")
    return content[: content.rindex(b"\r\n" + boundary)]
