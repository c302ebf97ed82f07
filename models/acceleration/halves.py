"""Half-precision weights on a CPU without half-precision arithmetic: stored in half the bytes, used in float32."""

import torch
from torch import nn
from torch.nn import functional as F


def computes_in_float32(device: torch.device) -> bool:
    """Whether half precision is emulated on this device: a pass of Stable Diffusion then takes five times as long."""
    return device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def compute_in_float32(module: nn.Module) -> None:
    """Makes a half-precision network compute in float32.

    The weights of its linear layers and convolutions, nearly all it has, stay in half precision and are converted
    whenever they are used; everything else is converted once.
    """
    for child in module.modules():
        computed = _COMPUTED.get(type(child))
        if computed is not None:
            child.__class__ = computed
            continue
        for name, parameter in child.named_parameters(recurse=False):
            setattr(child, name, nn.Parameter(parameter.float(), requires_grad=False))
        for name, buffer in child.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(child, name, buffer.float())


class _Linear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.to(input.dtype), _converted(self.bias, input.dtype))


class _Convolution(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.to(input.dtype), _converted(self.bias, input.dtype)
        convolved: torch.Tensor = self._conv_forward(input, weight, bias)
        return convolved


def _converted(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if bias is None else bias.to(dtype)


# By exact type: a subclass may do more than its parent.
_COMPUTED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, nn.Conv2d: _Convolution}
