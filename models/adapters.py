"""Low-rank adapters: what a frozen network's convolutions learn besides (LoRA, Hu et al. 2021, arXiv 2106.09685).

An adapted expert is the frozen one plus two thin matrices a convolution. They are trained beside it, shipped with the
heads and added into its weights when it is loaded, so that they cost nothing in serving.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from models.bundle.files import read_tensors

RANK = 6


class LowRank(nn.Module):
    """weight + up · down, the weight taken as a matrix of [out, everything else]; at first the weight itself."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The adapted weight, of the same shape."""
        return weight + (self.up @ self.down).view_as(weight)


def adapt(network: nn.Module, *, rank: int = RANK) -> nn.ModuleList:
    """Gives every convolution of a frozen network an adapter, and returns the adapters, which alone are to be trained.

    Args:
        network: changed in place; its own weights no longer ask for gradients.
        rank: of the adapters.
    """
    network.requires_grad_(False)
    for conv in _convolutions(network).values():
        parametrize.register_parametrization(conv, "weight", LowRank(conv.weight, rank))
    return adapters_of(network)


def adapters_of(network: nn.Module) -> nn.ModuleList:
    """The adapters of an adapted network."""
    return nn.ModuleList(_adapters(network).values())


def merge(network: nn.Module) -> None:
    """Adds every adapter into its convolution's weight and removes it."""
    for conv in _convolutions(network).values():
        if parametrize.is_parametrized(conv, "weight"):
            parametrize.remove_parametrizations(conv, "weight", leave_parametrized=True)
    network.requires_grad_(False)


def save_adapters(network: nn.Module, file: Path) -> None:
    """Writes an adapted network's adapters in half precision."""
    save_file({name: tensor.detach().half().contiguous().cpu() for name, tensor in _tensors(network).items()}, file)


def load_adapters(network: nn.Module, file: Path) -> None:
    """Adapts a network as `file` says, ready to be merged or to be trained on.

    Raises:
        BundleError: the file is missing.
        TensorMismatchError: it holds adapters of another network or rank.
    """
    adapt(network)
    wanted = _tensors(network)
    read = read_tensors(file, wanted, dtype=torch.float32)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(read[name])


def _convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def _adapters(network: nn.Module) -> dict[str, LowRank]:
    ending = ".parametrizations.weight.0"
    return {
        name.removesuffix(ending): module
        for name, module in network.named_modules()
        if name.endswith(ending) and isinstance(module, LowRank)
    }


def _tensors(network: nn.Module) -> Mapping[str, torch.Tensor]:
    """`<convolution>.down` and `<convolution>.up` of every adapter."""
    adapters = _adapters(network)
    return {f"{name}.{side}": getattr(part, side) for name, part in adapters.items() for side in ("down", "up")}
