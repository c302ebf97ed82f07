"""The segmentation head: cells of a dense map against class names and a learned background."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

PLACES = 8
"""Places a side that every cell is compared with."""
LIKENESS_SCALE = 0.15
"""Cosine that counts as much as a distance of √2 · `REACH`."""
REACH = 0.25
"""Distance at which a place counts less by a factor of √e, as a share of the map's side."""


class SegmentationHead(nn.Module):
    """Cosine to each name, and a background logit that is a linear reading of the cell itself.

    A cell whose best name is a poor match loses to the background, so "none of the named" needs no name.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())
        self.background = nn.Conv2d(dimension, 1, 1)

    def logits(self, dense: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Logits of background and names.

        Args:
            dense: [B, D, h, w].
            texts: [B, N, D] names of each map, unit length.

        Returns:
            [B, N + 1, h, w]; channel 0 is the background.
        """
        similarity = torch.einsum("bdhw,bnd->bnhw", F.normalize(dense, dim=1), texts)
        return torch.cat([self.background(dense), self._scale * similarity], dim=1)

    @torch.inference_mode()
    def probabilities(self, dense: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
        """[D, h, w] and [N, D] float32 → [N + 1, h, w] float32, background first, summing to one.

        Whether a cell is background it tells alone; which name it has, together with the cells like it around it: an
        object's parts agree (docs/adr/0019).
        """
        dense = np.ascontiguousarray(dense)
        cells, prompts = torch.from_numpy(dense)[None], torch.from_numpy(texts)
        # NumPy's sum over the first axis is three times as fast as torch's norm over it, bit for bit the same.
        lengths = np.sqrt(np.square(dense).sum(axis=0))
        directions = cells / torch.from_numpy(lengths).clamp_min(1e-12)
        alone = self._scale * (prompts @ directions[0].flatten(1))
        logits = torch.cat([self.background(cells)[0].flatten(1), alone])
        background = logits.softmax(dim=0)[:1]
        names = (self._scale * _likeness_around(directions, prompts)).softmax(dim=0)
        found: NDArray[np.float32] = torch.cat([background, (1 - background) * names]).numpy()
        return found.reshape(-1, *dense.shape[1:])

    @property
    def _scale(self) -> torch.Tensor:
        return self.log_scale.exp().clamp(max=100)


def _likeness_around(directions: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Cosine of each text to each cell's mean direction of the map's places, by likeness and nearness.

    Args:
        directions: [1, D, h, w], unit length.
        texts: [N, D], unit length.

    Returns:
        [N, h · w].
    """
    height, width = directions.shape[2:]
    if height % PLACES or width % PLACES:
        means = F.adaptive_avg_pool2d(directions, PLACES)
    else:
        means = F.avg_pool2d(directions, (height // PLACES, width // PLACES))  # the same bits, twice as fast
    places = F.normalize(means, dim=1).flatten(2)[0]
    likeness = directions.flatten(2)[0].T @ places / LIKENESS_SCALE - _remoteness(height, width)
    weights = likeness.softmax(dim=1).T
    # The mean itself, D numbers a cell, is never made: its products with the texts and with itself are enough.
    lengths = (weights * (places.T @ places @ weights)).sum(dim=0).clamp(min=1e-24).sqrt()
    return texts @ places @ weights / lengths


@lru_cache(maxsize=8)
def _remoteness(height: int, width: int) -> torch.Tensor:
    """[height · width, PLACES²]: what a place's distance to a cell takes off its likeness."""
    return torch.cdist(_centres(height, width), _centres(PLACES, PLACES)).square() / (2 * REACH**2)


def _centres(height: int, width: int) -> torch.Tensor:
    """[height · width, 2]: centres of a grid's cells, in shares of its sides."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.cartesian_prod(rows, columns)
