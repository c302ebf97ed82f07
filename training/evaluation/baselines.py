"""What the heads must beat on the same split: HOG, and the frozen expert without training."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.feature import hog
from torch import nn

from models.errors import BundleError
from training.prior.corpus import to_tensor


def hog_embedding(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[B, 128, 128, 3] uint8 → [B, D] float32, unit length: 8 orientations, cells of 16 px, blocks of 2."""
    found = [hog(p.mean(axis=2), orientations=8, pixels_per_cell=(16, 16), cells_per_block=(2, 2)) for p in pixels]
    return _unit(np.stack(found).astype(np.float32))


def expert_embedding(expert: nn.Module | None) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The expert's last map, averaged over its cells: what a user gets from it without training."""

    @torch.inference_mode()
    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if expert is None:
            raise BundleError("this bundle has no expert to compare with")
        maps = expert(to_tensor(pixels))
        return _unit(maps[-1].mean(dim=(2, 3)).numpy())

    return embed


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)
