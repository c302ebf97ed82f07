"""The expert's maps while it learns: computed anew for every batch, and once more for scenes when it has learnt."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.bundle.pack import mini_uhead_shape
from training.devices import batch_of, half_on_gpu, to_input
from training.heads.feature_store import EXPERT_CELLS, TAP_CELLS, DeviceStore, in_batches
from training.heads.frozen import HeadData


class AdaptedCells:
    """What the pool reads of views: taps as kept, the expert's cells from the pixels, so that gradients reach it.

    Args:
        expert: in eval mode, on the data's device.
        data: views, their taps and their pixels.

    Raises:
        ValueError: the pixels were not kept.
    """

    def __init__(self, expert: nn.Module, data: HeadData) -> None:
        if data.pixels is None:
            raise ValueError("an expert learns from the views' pixels, and they were not kept")
        self._expert = expert
        self._taps = data.store.only(TAP_CELLS)
        self._pixels = data.pixels

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def device(self) -> torch.device:
        """Where the maps lie."""
        return self._pixels.device

    def read(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """As of `MapReader`."""
        pixels = to_input(self._pixels[rows])
        with half_on_gpu(pixels.device):
            levels = [level.float() for level in self._expert(pixels)]
        return {**self._taps.read(rows), EXPERT_CELLS: mini_uhead_shape().expert_cells(levels)}


def adapted_scenes(expert: nn.Module, data: HeadData) -> DeviceStore:
    """The scenes' maps with those of an adapted expert in the frozen one's place."""

    @torch.inference_mode()
    def levels_of(pixels: NDArray[Any]) -> list[torch.Tensor]:
        batch = torch.from_numpy(np.array(pixels)).to(data.device)
        return [level.half() for level in expert(to_input(batch))]

    size = batch_of(data.device, cpu=8, gpu=1024)
    levels = zip(*[levels_of(pixels) for pixels in in_batches(data.scene_pixels, size)], strict=True)
    return data.scene_store.replaced({f"expert.{level}": torch.cat(maps) for level, maps in enumerate(levels)})
