"""The adapted expert: features at several strides from a frozen timm or open_clip network, with low-rank adapters.

An adapter adds two thin matrices to a convolution's weight (LoRA, Hu et al. 2021, arXiv 2106.09685). Training learns
the adapters alone; loading a bundle merges them into the weights, so that they cost nothing in serving.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import open_clip
import timm
import torch
from torch import nn
from torch.nn.utils import parametrize

from models.errors import TensorMismatchError

RANK = 6  # of every adapter


class TimmExpert(nn.Module):
    """Feature maps of a timm network at `levels` (timm's `out_indices`), high to low resolution."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, name: str, levels: Sequence[int]) -> None:
        super().__init__()
        self.network = timm.create_model(name, pretrained=False, features_only=True, out_indices=tuple(levels))
        mean, std = (torch.tensor(self.network.default_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        # (([-1, 1] + 1) / 2 - mean) / std as one product and one sum.
        self.register_buffer("shift", (1 - 2 * mean) / (2 * std), persistent=False)
        self.register_buffer("scale", 1 / (2 * std), persistent=False)
        self._is_unit = bool((mean == 0.5).all() and (std == 0.5).all())  # then [-1, 1] needs no normalisation

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """[B, 3, H, W] in [-1, 1] → one [B, C, h, w] per level."""
        maps: list[torch.Tensor] = self.network(pixels if self._is_unit else pixels * self.scale + self.shift)
        return maps


class OpenClipExpert(nn.Module):
    """Token maps of an open_clip vision transformer after several blocks, all of one size."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str, blocks: Sequence[int]) -> None:
        super().__init__()
        self.visual = open_clip.create_model(name, pretrained=None).visual
        self.blocks = tuple(blocks)
        mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """[B, 3, H, W] in [-1, 1] → one [B, C, h, w] per block; pixels are resized to the tower's own size."""
        size = self.visual.image_size
        resized = nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        tokens = self.visual.forward_intermediates(
            ((resized + 1) / 2 - self.mean) / self.std, indices=list(self.blocks), intermediates_only=True
        )
        maps: list[torch.Tensor] = tokens["image_intermediates"]
        return maps


def read_lite0_package(file: Path, target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the EfficientNet-Lite0 package's weights under timm's names.

    Args:
        file: the package's `.pth`.
        target: the state dict to fill: timm's `tf_efficientnet_lite0`, with or without its classifier.

    Raises:
        TensorMismatchError: names or shapes do not line up.
    """
    source = torch.load(file, map_location="cpu", weights_only=True)  # executes nothing
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if len(source) != len(whole):
        raise TensorMismatchError(f"{file} holds {len(source)} tensors, not {len(whole)}")
    renamed = {}
    # Both networks order their tensors alike; a test compares their logits.
    for (name, tensor), (wanted, like) in zip(source.items(), whole.items(), strict=True):
        if tensor.shape != like.shape:
            raise TensorMismatchError(f"{file}: the tensor '{name}' is {tuple(tensor.shape)}, not {tuple(like.shape)}")
        renamed[wanted] = tensor
    return {name: renamed[name] for name in target}


class LowRank(nn.Module):
    """Adapter of one weight W, seen as a matrix [out, everything else]: W + up · down, at first W itself."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(RANK, rows, columns)
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))  # zero: an adapter starts as the identity

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the adapted weight, of the same shape."""
        return weight + (self.up @ self.down).view_as(weight)


def adapt(network: nn.Module) -> nn.ModuleList:
    """Adds an adapter to every convolution in place, freezes everything else and returns the adapters."""
    network.requires_grad_(False)
    for conv in _convolutions(network):
        parametrize.register_parametrization(conv, "weight", LowRank(conv.weight))
    return adapters_of(network)


def adapters_of(network: nn.Module) -> nn.ModuleList:
    """Returns the adapters of an adapted network."""
    return nn.ModuleList(module for module in network.modules() if isinstance(module, LowRank))


def adapter_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Returns `<convolution>.down` and `<convolution>.up` of every adapter; they share memory with the network."""
    return {
        f"{name.removesuffix('.parametrizations.weight.0')}.{side}": getattr(module, side)
        for name, module in network.named_modules()
        if isinstance(module, LowRank)
        for side in ("down", "up")
    }


def merge_adapters(network: nn.Module) -> None:
    """Adds every adapter to its convolution's weight, removes it, and freezes the network."""
    for conv in _convolutions(network):
        if parametrize.is_parametrized(conv, "weight"):
            parametrize.remove_parametrizations(conv, "weight", leave_parametrized=True)  # keeps the sum
    network.requires_grad_(False)


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]
