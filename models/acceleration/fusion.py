"""Batch norms fused into the convolutions before them: the same function with one memory pass less."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def fuse_batch_norms(network: nn.Module, example: torch.Tensor) -> int:
    """Fuses every BatchNorm2d that directly follows a convolution whose output nothing else reads.

    Args:
        network: changed in place; in eval mode.
        example: [B, C, H, W], an input whose pass shows which modules follow which.

    Returns:
        How many norms were fused.
    """
    fused: set[int] = set()
    for conv, norm in directly_after(network, example, nn.BatchNorm2d):
        if norm.running_mean is None or norm.running_var is None:
            continue  # such a norm depends on its batch
        fused.add(id(norm))
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.requires_grad_(False)

    def activation(module: nn.Module) -> nn.Module | None:
        # timm's norms contain their activation, which stays.
        return (getattr(module, "act", None) or nn.Identity()) if id(module) in fused else None

    return replace_modules(network, activation)


def replace_modules(network: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> int:
    """Replaces in place, and counts, the modules for which `replacement` returns another one."""
    replaced = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            found = replacement(child)
            if found is not None:
                setattr(parent, name, found)
                replaced += 1
    return replaced


@torch.no_grad()
def directly_after(network: nn.Module, example: torch.Tensor, *kinds: type[M]) -> list[tuple[nn.Conv2d, M]]:
    """Returns convolutions with the module of these kinds that directly follows in a pass over `example`.

    A pair counts only if the pass calls each of the two once.
    """
    made_by: dict[int, nn.Conv2d] = {}
    outputs: list[torch.Tensor] = []
    pairs: list[tuple[nn.Conv2d, M]] = []
    uses: dict[int, int] = {}

    def after_conv(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        uses[id(module)] = uses.get(id(module), 0) + 1
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = module
            outputs.append(output)  # stays alive, so that no other tensor gets its id

    def before_follower(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        uses[id(module)] = uses.get(id(module), 0) + 1
        conv = made_by.pop(id(inputs[0]), None)  # identity, not equality: an operation between them makes a new tensor
        if isinstance(module, kinds) and conv is not None:
            pairs.append((conv, module))

    handles = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
        if isinstance(module, kinds):
            handles.append(module.register_forward_pre_hook(before_follower))
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, follower) for conv, follower in pairs if uses[id(conv)] == uses[id(follower)] == 1]
