"""Convolutions that do on a CPU what the library's do, in less time."""

import platform
import warnings
from collections.abc import Callable
from typing import TypeGuard

import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional

from models.acceleration.fusion import directly_after

_MANY_OUTPUTS = 1 << 17
"""Values a picture from which a kernel that adds the bias itself is faster than a matrix product and a sum."""


def lean_convolutions(network: nn.Module, example: torch.Tensor | None = None) -> int:
    """Swap convolutions whose library form is slow on a CPU; the function stays the same, to rounding.

    1×1 convolutions become one matrix product over the whole batch, depthwise ones with uneven "same" padding lose the
    padded copy of their input, and all others whose weights torch would arrange anew in every pass have them packed.

    Args:
        network: changed in place; for inference alone, and fastest on maps in `channels_last`.
        example: an input it takes, [B, C, H, W]. What clamps a convolution's output in a pass over it is done in the
            convolution's kernel then.

    Returns:
        How many were swapped.
    """
    clamps = [] if example is None else directly_after(network, example, nn.ReLU, nn.Hardtanh)
    limits = {id(conv): found for conv, clamp in clamps if (found := _limits(clamp)) is not None}
    idle = {id(clamp) for conv, clamp in clamps if id(conv) in limits and _is_packable(conv)}

    def lean(module: nn.Module) -> nn.Module | None:
        return nn.Identity() if id(module) in idle else _lean(module, limits.get(id(module)))

    return _swap(network, lean) - len(idle)


def packed_convolutions(network: nn.Module) -> int:
    """Swap only those convolutions that keep the library's very bits, in batches of two or more.

    Args:
        network: changed in place; for inference alone.

    Returns:
        How many were swapped.
    """

    def packed(module: nn.Module) -> nn.Module | None:
        return PackedConvolution(module) if _is_packable(module) and not _is_pointwise(module) else None

    return _swap(network, packed)


def _swap(network: nn.Module, other: Callable[[nn.Module], nn.Module | None]) -> int:
    """Put what `other` gives for a module in its place; returns how often."""
    swapped = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            found = other(child)
            if found is not None:
                setattr(parent, name, found)
                swapped += 1
    return swapped


def _lean(module: nn.Module, limits: tuple[float, float] | None) -> nn.Module | None:
    if _is_packable(module) and (limits is not None or not _is_pointwise(module)):
        return PackedConvolution(module, limits)
    if _is_pointwise(module):
        return PointwiseConvolution(module)
    if isinstance(module, Conv2dSame) and type(module) is Conv2dSame:
        is_depthwise = module.groups == module.in_channels > 1
        return SamePaddedDepthwise(module) if is_depthwise and module.dilation == (1, 1) else None
    return None


def _limits(clamp: nn.Module) -> tuple[float, float] | None:
    # Only what is called as the library calls it: a subclass may do anything.
    if type(clamp) is nn.ReLU:
        return 0.0, float("inf")
    if type(clamp) in (nn.Hardtanh, nn.ReLU6):
        return float(clamp.min_val), float(clamp.max_val)  # type: ignore[arg-type]
    return None


def _is_packable(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it may become a `PackedConvolution`; other machines than x86 were not measured."""
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.dilation == (1, 1)
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and _is_fast_in(module.weight.dtype)
    )


def _is_fast_in(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels of its own for it; bfloat16 needs AVX-512, and is fast with AMX."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(module) is not nn.Conv2d:
        return False
    plain = ((1, 1), (1, 1), 1)
    return (module.kernel_size, module.stride, module.groups) == plain and module.padding in ((0, 0), "same")


class PackedConvolution(nn.Module):
    """A convolution by oneDNN with its weights packed once a map size. [B, C, H, W] → [B, D, h, w].

    In batches of two or more the library takes the same kernel, but arranges the weights for it in every pass: a tenth
    of a pass over four pictures. One picture alone it takes another way, and the last bits are others.

    Args:
        limits: least and largest value of the output.
    """

    def __init__(self, conv: nn.Conv2d, limits: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.conv = conv
        self.limits = [] if limits is None else list(limits)
        self._shape = (*(list(map(int, each)) for each in (conv.padding, conv.stride, conv.dilation)), conv.groups)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """The convolution's answer, within the limits."""
        packed = self._packed(int(maps.shape[2]), int(maps.shape[3]))
        answer: torch.Tensor = _convolve(maps, packed, self.conv.bias, *self._shape, self.limits)
        return answer

    def _packed(self, height: int, width: int) -> torch.Tensor:
        """Weights as oneDNN wants them for maps of this size; for others it would take forty times as long."""
        name = f"packed_{height}x{width}"
        if name not in self._buffers:
            size = [1, self.conv.in_channels, height, width]
            with torch.inference_mode(False), torch.no_grad():
                packed = torch.ops.mkldnn._reorder_convolution_weight(self.conv.weight.detach(), *self._shape, size)
            self.register_buffer(name, packed, persistent=False)
        found = self._buffers[name]
        assert found is not None
        return found


class PointwiseConvolution(nn.Module):
    """A 1×1 convolution as one matrix product, where torch takes one a picture. [B, C, h, w] → [B, D, h, w]."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        # [C, D]: the product would transpose it in every pass.
        self.weight = nn.Parameter(conv.weight.detach().flatten(1).t().contiguous(), requires_grad=False)
        self.bias = conv.bias
        self.packed = PackedConvolution(conv) if _is_packable(conv) else None

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """The convolution's answer, in `channels_last`."""
        size, _, height, width = maps.shape
        if self.packed is not None and height * width * self.weight.shape[1] >= _MANY_OUTPUTS:
            answer: torch.Tensor = self.packed(maps.contiguous(memory_format=torch.channels_last))
            return answer
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


def _packed_convolution(
    maps: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    limits: list[float],
) -> torch.Tensor:
    scalars: list[int | float | complex | None] = []
    for limit in limits:
        scalars.append(limit)
    answer: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
        maps, packed, bias, padding, stride, dilation, groups, "hardtanh" if limits else "none", scalars, ""
    )
    return answer


def _scripted(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """For recorded graphs: the tracer has no word for a list of optional numbers.

    Where torch has no TorchScript any more, nothing is recorded, and the function itself will do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scripted: Callable[..., torch.Tensor] = torch.jit.script(function)
        except (AttributeError, NotImplementedError, RuntimeError):
            return function
    return scripted


_convolve = _scripted(_packed_convolution)
