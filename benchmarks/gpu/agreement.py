"""Whether the device answers what the CPU answers, alone as in company."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.precision import PRECISIONS, Precision, batch_of, encoder_of
from models.encoder import Encoder
from models.transforms import to_unit

BATCH, TOP = 16, 10
Answers = tuple[NDArray[np.float32], NDArray[np.float32]]


def agreement(device: str, pictures: Path, count: int, note: Callable[[str], None]) -> dict[str, object]:
    """Every precision against fp32 on the CPU: deviations, and the ten nearest pictures to each drawing."""
    found = np.load(pictures)
    shown, drawn = (_unit(found[name][:count]) for name in ("pictures", "drawings"))
    both = torch.cat([shown, drawn])
    with encoder_of(Precision(name="reference", dtype="fp32"), "cpu") as encoder:
        reference = _answers(encoder, both)
    note("reference of the CPU is there")
    rows = []
    for precision in PRECISIONS if device.startswith("cuda") else PRECISIONS[:1]:
        with encoder_of(precision, device) as encoder:
            encoder._is_recorded = encoder._is_recorded and not device.startswith("cuda")
            answers = _answers(encoder, both)
            few = both[:BATCH]
            alone = [_answers(encoder, few[index : index + 1]) for index in range(len(few))]
        row = {
            "precision": precision.name,
            "pooled": _deviation(answers[0], reference[0]),
            "dense": _deviation(answers[1], reference[1]),
            "cosine_off": float(1 - (answers[0] * reference[0]).sum(axis=1).min()),
            "alone_pooled": _deviation(np.concatenate([one for one, _ in alone]), answers[0][: len(few)]),
            "alone_dense": _deviation(np.concatenate([one for _, one in alone]), answers[1][: len(few)]),
            "top10_overlap": _overlap(answers[0], reference[0], len(shown)),
            "same_first": _overlap(answers[0], reference[0], len(shown), top=1),
        }
        rows.append(row)
        note(str(row))
    return {"pictures": len(shown), "drawings": len(drawn), "rows": rows}


def _unit(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.stack([to_unit(one) for one in pixels]))


def _answers(encoder: Encoder, views: torch.Tensor) -> Answers:
    found = [encoder.encode_images(batch_of(part)) for part in torch.split(views, BATCH)]
    return (
        torch.cat([one.pooled for one in found]).numpy(),
        torch.cat([one.dense for one in found]).numpy(),
    )


def _deviation(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Largest ‖found − wanted‖ / ‖wanted‖ of any sample."""
    apart = (found - wanted).reshape(len(found), -1)
    return float((np.linalg.norm(apart, axis=1) / np.linalg.norm(wanted.reshape(len(found), -1), axis=1)).max())


def _overlap(found: NDArray[np.float32], wanted: NDArray[np.float32], shown: int, *, top: int = TOP) -> float:
    """Mean share of the nearest `top` pictures to a drawing that both name."""
    nearest = [np.argsort(-(each[shown:] @ each[:shown].T), axis=1, kind="stable")[:, :top] for each in (found, wanted)]
    return float(np.mean([len(set(one) & set(other)) / top for one, other in zip(*nearest, strict=True)]))
