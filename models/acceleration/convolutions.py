"""Convolutions that compute on a CPU what the library's do, in less time (docs/adr/0026, docs/adr/0028)."""

import platform
import warnings
from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import nn

from models.acceleration.fusion import directly_after, replace_modules

_MANY_OUTPUTS = 1 << 17  # per image: from here a kernel that adds the bias itself beats a matrix product and a sum


def optimize_convolutions(network: nn.Module, example: torch.Tensor | None = None) -> int:
    """Replaces convolutions that are slow on a CPU; the function stays the same up to rounding.

    1×1 convolutions become one matrix product over the whole batch, and the others get packed weights.

    Args:
        network: changed in place; for inference only, and fastest on maps in `channels_last`.
        example: [B, C, H, W], an input; if given, a clamp that directly follows a convolution in a pass over it moves
            into the convolution's kernel.

    Returns:
        How many convolutions were replaced.
    """
    clamps = [] if example is None else directly_after(network, example, nn.ReLU, nn.Hardtanh)
    limits = {id(conv): found for conv, clamp in clamps if (found := _limits(clamp)) is not None}
    fused = {id(clamp) for conv, clamp in clamps if id(conv) in limits and _is_packable(conv)}

    def optimized(module: nn.Module) -> nn.Module | None:
        return nn.Identity() if id(module) in fused else _optimized(module, limits.get(id(module)))

    return replace_modules(network, optimized) - len(fused)


def pack_convolutions(network: nn.Module) -> int:
    """Replaces in place, and counts, the convolutions whose packed form has the library's bits in batches of two."""

    def packed(module: nn.Module) -> nn.Module | None:
        # Packed 1×1 convolutions were tried in the U-Net and rejected (docs/adr/0028).
        return PackedConvolution(module) if _is_packable(module) and not _is_pointwise(module) else None

    return replace_modules(network, packed)


def _optimized(module: nn.Module, limits: tuple[float, float] | None) -> nn.Module | None:
    if _is_packable(module) and (limits is not None or not _is_pointwise(module)):
        return PackedConvolution(module, limits)
    return PointwiseConvolution(module) if _is_pointwise(module) else None


def _limits(clamp: nn.Module) -> tuple[float, float] | None:
    # Exact types: a subclass may compute anything.
    if type(clamp) is nn.ReLU:
        return 0.0, float("inf")
    if type(clamp) in (nn.Hardtanh, nn.ReLU6):
        return float(clamp.min_val), float(clamp.max_val)  # type: ignore[arg-type]
    return None


def _is_packable(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.dilation == (1, 1)
        and platform.machine().lower() in ("x86_64", "amd64")  # others were not measured
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and module.weight.dtype in _packable_dtypes()
    )


def _packable_dtypes() -> tuple[torch.dtype, ...]:
    has_avx512 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # oneDNN computes in bfloat16 with AVX-512 alone
    return (torch.float32, torch.bfloat16) if has_avx512 else (torch.float32,)


def _is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(module) is not nn.Conv2d:
        return False
    plain = ((1, 1), (1, 1), 1)
    return (module.kernel_size, module.stride, module.groups) == plain and module.padding in ((0, 0), "same")


class PackedConvolution(nn.Module):
    """A convolution by oneDNN whose weights are packed once per map size. [B, C, H, W] → [B, D, h, w].

    In batches of two or more the library uses the same kernel but packs the weights in every pass, a tenth of a pass
    over four images. For a single image it uses another kernel, whose last bits differ.

    `limits` are the smallest and largest value of the output, if it is clamped.
    """

    def __init__(self, conv: nn.Conv2d, limits: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.conv = conv
        self.limits = [] if limits is None else list(limits)
        self._shape = (*(list(map(int, each)) for each in (conv.padding, conv.stride, conv.dilation)), conv.groups)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Returns the convolution's output, clamped to the limits."""
        packed = self._packed(int(maps.shape[2]), int(maps.shape[3]))
        answer: torch.Tensor = _convolve(maps, packed, self.conv.bias, *self._shape, self.limits)
        return answer

    def _packed(self, height: int, width: int) -> torch.Tensor:
        # One layout per map size: with another size's layout a pass takes forty times as long.
        name = f"packed_{height}x{width}"
        if name not in self._buffers:
            size = [1, self.conv.in_channels, height, width]
            with torch.inference_mode(False), torch.no_grad():  # graphs are traced outside it
                packed = torch.ops.mkldnn._reorder_convolution_weight(self.conv.weight.detach(), *self._shape, size)
            self.register_buffer(name, packed, persistent=False)
        found = self._buffers[name]
        assert found is not None
        return found


class PointwiseConvolution(nn.Module):
    """A 1×1 convolution as one matrix product; the library runs one per image. [B, C, h, w] → [B, D, h, w]."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        # [C, D]: stored transposed, or the product would transpose it in every pass.
        self.weight = nn.Parameter(conv.weight.detach().flatten(1).t().contiguous(), requires_grad=False)
        self.bias = conv.bias
        self.packed = PackedConvolution(conv) if _is_packable(conv) else None

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Returns the convolution's output, in `channels_last`."""
        size, _, height, width = maps.shape
        if self.packed is not None and height * width * self.weight.shape[1] >= _MANY_OUTPUTS:
            answer: torch.Tensor = self.packed(maps.contiguous(memory_format=torch.channels_last))
            return answer
        rows = maps.permute(0, 2, 3, 1).flatten(0, 2)  # a view of maps in `channels_last`
        mixed = rows @ self.weight
        if self.bias is not None:
            # Not `addmm`: TorchScript splits it into these two steps, and the untraced pass would have other bits.
            mixed.add_(self.bias)
        return mixed.view(size, height, width, -1).permute(0, 3, 1, 2)


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
    scalars: list[int | float | complex | None] = []  # filled in a loop: TorchScript does not convert the list
    for limit in limits:
        scalars.append(limit)
    answer: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
        maps, packed, bias, padding, stride, dilation, groups, "hardtanh" if limits else "none", scalars, ""
    )
    return answer


def _scripted(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Compiles a function for traced graphs: the tracer cannot record a list of optional numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scripted: Callable[..., torch.Tensor] = torch.jit.script(function)
        except (AttributeError, NotImplementedError, RuntimeError):
            return function  # a torch without TorchScript traces no graphs either
    return scripted


_convolve = _scripted(_packed_convolution)
