"""The segmentation head: compares cells of a dense map with class names and a learned background."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

GRID_SIDE = 8  # of the grid whose cells every cell of the map is compared with
SIMILARITY_SCALE = 0.15  # cosine similarity that weighs as much as a distance of √2 · `DISTANCE_SCALE`
DISTANCE_SCALE = 0.25  # distance, as a share of the map's side, that divides the weight of a grid cell by √e


class SegmentationHead(nn.Module):
    """Scores names by cosine similarity, and the background by a linear layer on the cell.

    The background wins where the best name matches poorly, so "none of the named" needs no name.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())
        self.background = nn.Conv2d(dimension, 1, 1)

    def logits(self, dense: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Returns the logits that training uses, cell by cell.

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
        """Returns the probabilities that are served.

        The background is decided by each cell alone; its name also by similar cells around it, because the parts of
        an object agree (docs/adr/0019).

        Args:
            dense: [D, h, w] float32.
            texts: [N, D] float32, unit length.

        Returns:
            [N + 1, h, w] float32, background first, summing to one.
        """
        size, height, width = dense.shape
        # Channels last, as a CPU encoder returns them: all products below run along a cell's channels.
        cells = torch.from_numpy(np.ascontiguousarray(dense.transpose(1, 2, 0)).reshape(-1, size))
        lengths = torch.linalg.vector_norm(cells, dim=1, keepdim=True)
        directions = cells / lengths.clamp_min(1e-12)
        prompts, grid = torch.from_numpy(texts), _grid_directions(directions, height, width)
        background = self.background.weight.view(1, size)
        # One matrix product for all three comparisons.
        compared = directions @ torch.cat([grid, prompts, background]).T
        similarity, cosines, reading = compared.split([len(grid), len(prompts), 1], dim=1)
        alone = torch.cat([reading * lengths + self.background.bias, self._scale * cosines], dim=1)
        is_background = alone.softmax(dim=1)[:, :1]
        weights = (similarity / SIMILARITY_SCALE - _distance_penalty(height, width)).softmax(dim=1)
        # The weighted mean has D numbers a cell and is never computed: its products with texts and itself suffice.
        squares = (weights @ (grid @ grid.T) * weights).sum(dim=1, keepdim=True)
        around = weights @ (grid @ prompts.T) / squares.clamp(min=1e-24).sqrt()
        names = (self._scale * around).softmax(dim=1)
        joined = torch.cat([is_background, (1 - is_background) * names], dim=1).T.contiguous()
        probabilities: NDArray[np.float32] = joined.view(-1, height, width).numpy()
        return probabilities

    @property
    def _scale(self) -> torch.Tensor:
        return self.log_scale.exp().clamp(max=100)  # CLIP's bound (Radford et al. 2021, §2.5)


def _grid_directions(directions: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Returns the mean direction of each grid cell, [GRID_SIDE², D], unit length, from [height · width, D]."""
    if height % GRID_SIDE or width % GRID_SIDE:
        maps = directions.T.reshape(1, -1, height, width)
        sums = F.adaptive_avg_pool2d(maps, GRID_SIDE).flatten(2)[0].T
    else:
        # Rows before columns: each sum runs along contiguous memory, six times as fast as both at once.
        rows = directions.view(GRID_SIDE, height // GRID_SIDE, -1).sum(dim=1)
        sums = rows.view(GRID_SIDE * GRID_SIDE, width // GRID_SIDE, -1).sum(dim=1)
    return F.normalize(sums, dim=1)


@lru_cache(maxsize=8)
def _distance_penalty(height: int, width: int) -> torch.Tensor:
    """Returns what the distance to a grid cell subtracts from its similarity, [height · width, GRID_SIDE²]."""
    distance = torch.cdist(_centres(height, width), _centres(GRID_SIDE, GRID_SIDE))
    return distance.square() / (2 * DISTANCE_SCALE**2)


def _centres(height: int, width: int) -> torch.Tensor:
    """Returns the centres of a grid's cells, [height · width, 2], as shares of its sides."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.cartesian_prod(rows, columns)
