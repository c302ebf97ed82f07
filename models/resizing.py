"""Pixels resized on the device that computes."""

from typing import Literal

import torch
from torch.nn import functional as F


def resized(
    pixels: torch.Tensor, size: tuple[int, int], mode: Literal["bilinear", "bicubic"] = "bilinear"
) -> torch.Tensor:
    """Returns [B, 3, H, W] at another size, antialiased, in its own precision."""
    if size == (int(pixels.shape[2]), int(pixels.shape[3])):
        return pixels
    # In float32: on a CPU torch has no antialiased resizing of halves.
    return F.interpolate(pixels.float(), size=size, mode=mode, antialias=True).to(pixels.dtype)


def whole_patches(side: int, patch_size: int) -> int:
    """Returns the side rounded up to whole patches, px."""
    return -(-side // patch_size) * patch_size
