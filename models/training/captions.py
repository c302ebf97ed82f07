"""Text states of captions, computed once."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.text import load_minilm
from models.training.checkpoint import load_checkpoint, save_checkpoint


def cache_states(captions: tuple[str, ...], path: Path) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Conditioning states of the distinct captions, the empty one first.

    Args:
        captions: N captions.
        path: cache file, reused while it holds the same captions.

    Returns:
        [S, T, 384] float16 states and the [N] row of each caption in them.
    """
    distinct = ["", *sorted(set(captions) - {""})]
    rows = {caption: row for row, caption in enumerate(distinct)}
    cached = load_checkpoint(path)
    if cached is None or cached["captions"] != distinct:
        encoder = load_minilm()
        parts = [encoder.states(distinct[start : start + 64]).half() for start in range(0, len(distinct), 64)]
        cached = {"captions": distinct, "states": torch.cat(parts)}
        save_checkpoint(path, cached)
    states: torch.Tensor = cached["states"]
    return states, np.array([rows[caption] for caption in captions])
