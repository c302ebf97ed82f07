"""Text states of captions, computed once."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.text import load_minilm
from training.checkpoint import load_checkpoint, save_checkpoint
from training.devices import CPU, batch_of


def cache_states(
    captions: tuple[str, ...], path: Path, device: torch.device = CPU
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Conditioning states of the distinct captions, the empty one first.

    Args:
        captions: N captions.
        path: cache file, reused while it holds the same captions.
        device: that computes them.

    Returns:
        [S, T, 384] float16 states and the [N] row of each caption in them.
    """
    distinct = ["", *sorted(set(captions) - {""})]
    rows = {caption: row for row, caption in enumerate(distinct)}
    cached = load_checkpoint(path)
    if cached is None or cached["captions"] != distinct:
        encoder = load_minilm().to(device)
        size = batch_of(device, cpu=64, gpu=1024)
        parts = [encoder.states(distinct[at : at + size]).half().cpu() for at in range(0, len(distinct), size)]
        cached = {"captions": distinct, "states": torch.cat(parts)}
        save_checkpoint(path, cached)
    states: torch.Tensor = cached["states"]
    return states, np.array([rows[caption] for caption in captions])
