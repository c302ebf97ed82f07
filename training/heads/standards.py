"""Means and deviations of the maps that heads read, measured once before training."""

import numpy as np
import torch
from numpy.typing import NDArray

from models.heads.uhead import GridPool, UHead
from training.heads.dense import split_maps
from training.heads.feature_store import DeviceStore
from training.heads.pooled import all_cells

STANDARD_VIEWS, STANDARD_SCENES = 4096, 256  # rows that they are measured on


def measure_pool(uhead: UHead, views: DeviceStore) -> None:
    """Set mean and deviation of every channel of the pool's input from the cells of all views."""
    if isinstance(uhead.pool, GridPool):
        rows = torch.from_numpy(_spread(len(views), STANDARD_VIEWS)).to(views.device)
        uhead.pool.standard.measure(all_cells(views.read(rows)))


def measure_dense(uhead: UHead, scenes: DeviceStore) -> None:
    """Set mean and deviation of every channel of the dense path's input from the scenes' maps."""
    rows = torch.from_numpy(_spread(len(scenes), STANDARD_SCENES)).to(scenes.device)
    uhead.measure(*split_maps(scenes.read(rows)))


def _spread(rows: int, count: int) -> NDArray[np.int64]:
    return np.linspace(0, rows - 1, min(rows, count)).astype(np.int64)
