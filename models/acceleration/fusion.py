"""Batch norms folded into the convolutions before them: one pass over memory less, the same function."""

from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def fold_batch_norms(network: nn.Module, example: torch.Tensor) -> int:
    """Fold every BatchNorm2d that directly follows a convolution whose output nothing else reads; activations stay.

    What follows what is seen on one pass over `example`, so any network whose convolutions and norms are modules will
    do. The network must be in eval mode.

    Args:
        network: changed in place.
        example: an input it takes, [B, C, H, W].

    Returns:
        How many norms were folded.
    """
    pairs = directly_after(network, example, nn.BatchNorm2d)
    for conv, norm in pairs:
        if norm.running_mean is None or norm.running_var is None:
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.requires_grad_(False)
    folded = {id(norm): norm for _, norm in pairs}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in folded:
                # timm's norms carry their activation.
                setattr(parent, name, getattr(child, "act", None) or nn.Identity())
    return len(folded)


@torch.no_grad()
def directly_after(network: nn.Module, example: torch.Tensor, *kinds: type[M]) -> list[tuple[nn.Conv2d, M]]:
    """Convolutions and what of these kinds directly follows them in a pass over `example`; each is used once in it."""
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[torch.Tensor] = []
    pairs: list[tuple[nn.Conv2d, M]] = []
    uses: dict[int, int] = {}

    def seen_conv(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        uses[id(module)] = uses.get(id(module), 0) + 1
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = module
            kept.append(output)  # alive, so that no other tensor gets its id

    def before_follower(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        uses[id(module)] = uses.get(id(module), 0) + 1
        conv = made_by.pop(id(inputs[0]), None)
        if isinstance(module, kinds) and conv is not None:
            pairs.append((conv, module))

    handles = [module.register_forward_hook(seen_conv) for module in network.modules() if isinstance(module, nn.Conv2d)]
    handles += [
        module.register_forward_pre_hook(before_follower) for module in network.modules() if isinstance(module, kinds)
    ]
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, follower) for conv, follower in pairs if uses[id(conv)] == uses[id(follower)] == 1]
