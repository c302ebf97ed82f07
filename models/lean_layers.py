"""Convolutions that do on a CPU what the library's do, in less time."""

import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional


def lean_convolutions(network: nn.Module) -> int:
    """Swap convolutions whose library form is slow on a CPU; the function stays the same, to rounding.

    Two kinds are swapped: 1×1 convolutions become one matrix product over the whole batch, and depthwise ones with
    uneven "same" padding lose the padded copy of their input.

    Args:
        network: changed in place; for inference alone, and fastest on maps in `channels_last`.

    Returns:
        How many were swapped.
    """
    swapped = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            lean = _lean(child)
            if lean is not None:
                setattr(parent, name, lean)
                swapped += 1
    return swapped


def _lean(module: nn.Module) -> nn.Module | None:
    # Only what is called as the library calls it: a subclass may do anything.
    if type(module) is nn.Conv2d:
        plain = ((1, 1), (1, 1), 1)
        is_pointwise = (module.kernel_size, module.stride, module.groups) == plain and module.padding in (
            (0, 0),
            "same",
        )
        return PointwiseConvolution(module) if is_pointwise else None
    if isinstance(module, Conv2dSame) and type(module) is Conv2dSame:
        is_depthwise = module.groups == module.in_channels > 1
        return SamePaddedDepthwise(module) if is_depthwise and module.dilation == (1, 1) else None
    return None


class PointwiseConvolution(nn.Module):
    """A 1×1 convolution as one matrix product, where torch takes one a picture. [B, C, h, w] → [B, D, h, w]."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        # [C, D]: the product would transpose it in every pass.
        self.weight = nn.Parameter(conv.weight.detach().flatten(1).t().contiguous(), requires_grad=False)
        self.bias = conv.bias

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """The convolution's answer, in `channels_last`."""
        size, _, height, width = maps.shape
        rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
        mixed = rows @ self.weight
        if self.bias is not None:
            # In a recorded graph `addmm` would become these two steps, and a pass unrecorded have other bits.
            mixed.add_(self.bias)
        return mixed.view(size, height, width, -1).permute(0, 3, 1, 2)


class SamePaddedDepthwise(nn.Module):
    """A depthwise convolution with TensorFlow's "same" padding. [B, C, h, w] → [B, C, ⌈h/stride⌉, ⌈w/stride⌉].

    That padding may be wider at the end than at the start, which torch answers with a padded copy of the map. Zeros
    before the kernel shift its windows as well as zeros before the map do, and the kernel is small.
    """

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """The convolution's answer."""
        conv = self.conv
        top, bottom = self._padding(maps.shape[2], 0)
        left, right = self._padding(maps.shape[3], 1)
        kernel = functional.pad(conv.weight, (right - left, 0, bottom - top, 0))
        return functional.conv2d(maps, kernel, conv.bias, conv.stride, (bottom, right), conv.dilation, conv.groups)

    def _padding(self, length: int, axis: int) -> tuple[int, int]:
        """Before and after, as TensorFlow counts it; after is the same or one more."""
        stride = self.conv.stride[axis]
        whole = max((-(-length // stride) - 1) * stride + self.conv.kernel_size[axis] - length, 0)
        return whole // 2, whole - whole // 2
