"""Batch norms folded into the convolutions before them: one pass over memory less, the same function."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


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
    pairs = _pairs(network, example)
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


def _pairs(network: nn.Module, example: torch.Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and the norms that directly follow them, each seen once."""
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[torch.Tensor] = []
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    uses: dict[int, int] = {}

    def seen_conv(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = module
            kept.append(output)  # alive, so that no other tensor gets its id
            uses[id(module)] = uses.get(id(module), 0) + 1

    def before_norm(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        conv = made_by.get(id(inputs[0]))
        if isinstance(module, nn.BatchNorm2d) and conv is not None:
            pairs.append((conv, module))

    handles = [module.register_forward_hook(seen_conv) for module in network.modules() if isinstance(module, nn.Conv2d)]
    handles += [
        module.register_forward_pre_hook(before_norm)
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for conv, norm in pairs if uses[id(conv)] == 1]
