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
        size, height, width = dense.shape
        # A cell's numbers lie side by side in what a CPU's encoder gives, and all that follows wants them so.
        cells = torch.from_numpy(np.ascontiguousarray(dense.transpose(1, 2, 0)).reshape(-1, size))
        lengths = torch.linalg.vector_norm(cells, dim=1, keepdim=True)
        directions = cells / lengths.clamp_min(1e-12)
        prompts, places = torch.from_numpy(texts), _places(directions, height, width)
        background = self.background.weight.view(1, size)
        compared = directions @ torch.cat([places, prompts, background]).T
        likeness, cosines, reading = compared.split([len(places), len(prompts), 1], dim=1)
        alone = torch.cat([reading * lengths + self.background.bias, self._scale * cosines], dim=1)
        is_background = alone.softmax(dim=1)[:, :1]
        weights = (likeness / LIKENESS_SCALE - _remoteness(height, width)).softmax(dim=1)
        # The mean itself, D numbers a cell, is never made: its products with the texts and with itself are enough.
        squares = (weights @ (places @ places.T) * weights).sum(dim=1, keepdim=True)
        around = weights @ (places @ prompts.T) / squares.clamp(min=1e-24).sqrt()
        names = (self._scale * around).softmax(dim=1)
        found = torch.cat([is_background, (1 - is_background) * names], dim=1).T.contiguous()
        answer: NDArray[np.float32] = found.view(-1, height, width).numpy()
        return answer

    @property
    def _scale(self) -> torch.Tensor:
        return self.log_scale.exp().clamp(max=100)


def _places(directions: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Mean direction of each of a map's places, [PLACES², D] of unit length, from [height · width, D]."""
    if height % PLACES or width % PLACES:
        maps = directions.T.reshape(1, -1, height, width)
        sums = F.adaptive_avg_pool2d(maps, PLACES).flatten(2)[0].T
    else:
        # Rows before columns: each sum runs along what lies in a row, six times as fast as over both at once.
        rows = directions.view(PLACES, height // PLACES, -1).sum(dim=1)
        sums = rows.view(PLACES * PLACES, width // PLACES, -1).sum(dim=1)
    return F.normalize(sums, dim=1)


@lru_cache(maxsize=8)
def _remoteness(height: int, width: int) -> torch.Tensor:
    """[height · width, PLACES²]: what a place's distance to a cell takes off its likeness."""
    return torch.cdist(_centres(height, width), _centres(PLACES, PLACES)).square() / (2 * REACH**2)


def _centres(height: int, width: int) -> torch.Tensor:
    """[height · width, 2]: centres of a grid's cells, in shares of its sides."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.cartesian_prod(rows, columns)
