"""Compare the device's answers with the CPU's, of images encoded alone and in batches."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from app.imaging.demo import demo_images
from benchmarks.encoder import FP32, Precision, encoder_of
from benchmarks.workload import batch_of
from models.encoder import Encoder
from models.transforms import canonical_image, canonical_sketch, to_unit

BATCH, TOP = 16, 10  # nearest images that are compared
DARK = 90  # pixels darker than this in every channel are the black lines of an emoji
Answers = tuple[NDArray[np.float32], NDArray[np.float32]]


def agreement(device: str, precisions: Sequence[Precision], count: int) -> dict[str, Any]:
    """Return, for every precision, its deviations from fp32 on the CPU, and how far the nearest ten images agree."""
    images, drawings = _rendered(count)
    both = torch.cat([images, drawings])
    with encoder_of(FP32, "cpu") as encoder:
        reference = _answers(encoder, both)
    rows = []
    for precision in precisions:
        with encoder_of(precision, device, is_recorded=False if device.startswith("cuda") else None) as encoder:
            answers = _answers(encoder, both)
            alone = [_answers(encoder, one) for one in torch.split(both[:BATCH], 1)]
        rows.append(
            {
                "precision": precision.name,
                "pooled": _deviation(answers[0], reference[0]),
                "dense": _deviation(answers[1], reference[1]),
                "cosine_off": float(1 - (answers[0] * reference[0]).sum(axis=1).min()),
                "alone_pooled": _deviation(np.concatenate([pooled for pooled, _ in alone]), answers[0][:BATCH]),
                "alone_dense": _deviation(np.concatenate([dense for _, dense in alone]), answers[1][:BATCH]),
                "top10_overlap": _overlap(answers[0], reference[0], len(images)),
                "same_first": _overlap(answers[0], reference[0], len(images), top=1),
            }
        )
    return {"images": len(images), "drawings": len(drawings), "rows": rows}


def _rendered(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return at most `count` OpenMoji and their black lines alone, [N, 3, 128, 128] float32 in [-1, 1] each."""
    emoji = demo_images()
    images, drawings = [], []
    for each in emoji[:: max(1, len(emoji) // count)][:count]:
        with Image.open(io.BytesIO(each.render())) as opened:
            image = opened.convert("RGBA")  # transparent around the emoji
        white = Image.new("RGBA", image.size, "white")
        pixels = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
        lines = np.where(pixels.max(axis=2, keepdims=True) < DARK, 0, 255).astype(np.uint8).repeat(3, axis=2)
        drawing = canonical_sketch(lines)
        if drawing is not None:
            images.append(to_unit(canonical_image(pixels)))
            drawings.append(to_unit(drawing))
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(drawings))


def _answers(encoder: Encoder, views: torch.Tensor) -> Answers:
    found = [encoder.encode_images(batch_of(part)) for part in torch.split(views, BATCH)]
    return torch.cat([one.pooled for one in found]).numpy(), torch.cat([one.dense for one in found]).numpy()


def _deviation(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Return the largest ‖found − wanted‖ / ‖wanted‖ of any sample."""
    difference = (found - wanted).reshape(len(found), -1)
    return float((np.linalg.norm(difference, axis=1) / np.linalg.norm(wanted.reshape(len(found), -1), axis=1)).max())


def _overlap(found: NDArray[np.float32], wanted: NDArray[np.float32], images: int, *, top: int = TOP) -> float:
    """Return the mean share of the nearest `top` images to a drawing that both have; images come before drawings."""
    nearest = [np.argsort(-(x[images:] @ x[:images].T), axis=1, kind="stable")[:, :top] for x in (found, wanted)]
    return float(np.mean([len(set(one) & set(other)) / top for one, other in zip(*nearest, strict=True)]))
