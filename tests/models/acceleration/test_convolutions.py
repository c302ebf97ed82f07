"""Optimized convolutions change speed and nothing else."""

import copy

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from models.acceleration.convolutions import (
    PackedConvolution,
    PointwiseConvolution,
    optimize_convolutions,
    pack_convolutions,
)

_CONVOLUTIONS = [
    nn.Conv2d(16, 24, 3, padding=1),
    nn.Conv2d(16, 24, 3, stride=2, bias=False),
    nn.Conv2d(16, 16, 5, padding=2, groups=16),
    nn.Conv2d(16, 32, 1),
    nn.Conv2d(16, 32, (1, 3), padding=(0, 1), groups=2),
]


def _maps(*shape: int) -> torch.Tensor:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return maps.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("size", [1, 3])
def test_a_pointwise_convolution_is_the_same_function(size: int, has_bias: bool) -> None:
    conv = nn.Conv2d(5, 7, 1, bias=has_bias)
    for maps in (_maps(size, 5, 4, 6), _maps(size, 5, 4, 6).contiguous()):
        with torch.no_grad():
            found = PointwiseConvolution(conv)(maps)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, conv(maps))


@pytest.mark.parametrize("conv", _CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (3, 16, 5, 9), (8, 16, 32, 16)], ids=str)
@pytest.mark.parametrize("limits", [None, (0.0, 6.0), (0.0, float("inf"))])
def test_packed_weights_give_onednns_bits(
    conv: nn.Conv2d, shape: tuple[int, ...], limits: tuple[float, float] | None
) -> None:
    packed = PackedConvolution(conv, limits)
    # One module, maps of several sizes: each needs its own packing.
    for maps in (_maps(*shape), _maps(2, 16, 4, 4), _maps(*shape)):
        with torch.no_grad():
            padding = [int(side) for side in conv.padding]
            wanted = torch.mkldnn_convolution(
                maps, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups
            )
            wanted = wanted if limits is None else wanted.clamp(*limits)
            assert torch.equal(packed(maps), wanted)


@pytest.mark.parametrize("conv", _CONVOLUTIONS, ids=str)
def test_a_packed_convolution_is_the_same_function_for_one_image(conv: nn.Conv2d) -> None:
    with torch.no_grad():
        torch.testing.assert_close(PackedConvolution(conv)(_maps(1, 16, 7, 6)), conv(_maps(1, 16, 7, 6)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_packed_convolution_is_recorded_and_keeps_its_bits() -> None:
    network = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 8, 3)).eval()
    with torch.no_grad():
        wanted = network(_maps(2, 16, 9, 9))
        assert pack_convolutions(network) == 2
        network(_maps(2, 16, 9, 9))
        graph = torch.jit.trace(network, _maps(2, 16, 9, 9), check_trace=False)  # type: ignore[no-untyped-call]
        for size in (2, 5):
            assert torch.equal(graph(_maps(size, 16, 9, 9)), network(_maps(size, 16, 9, 9)))
        assert torch.equal(graph(_maps(2, 16, 9, 9)), wanted)


def test_packing_alone_keeps_a_networks_bits() -> None:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    network.to(memory_format=torch.channels_last)
    with torch.no_grad():
        before = network(_maps(2, 3, 64, 96))
        assert pack_convolutions(network) == 12, "all but the stem, pointwise ones and the four that halve their maps"
        for old, new in zip(before, network(_maps(2, 3, 64, 96)), strict=True):
            assert torch.equal(old, new)


def test_all_that_fits_is_swapped_and_nothing_else() -> None:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    example = _maps(2, 3, 64, 96)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in network.modules())
    with torch.no_grad():
        before = network(example)
        assert optimize_convolutions(network) == convolutions - 5, "all but the stem and the four that halve their maps"
        for old, new in zip(before, network(example), strict=True):
            assert (old - new).norm() <= 1e-5 * old.norm()


def test_a_clamp_that_follows_directly_moves_into_the_kernel() -> None:
    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.clamp = nn.Conv2d(4, 6, 1), nn.ReLU6()
            self.second, self.shared = nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()
            self.third = nn.Conv2d(6, 6, 3, padding=1)
            self.smooth = nn.GELU()

        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            maps = self.shared(self.second(self.clamp(self.first(maps))))
            answer: torch.Tensor = self.smooth(self.third(self.shared(maps)))
            return answer

    network, example = Branched().eval(), 20 * _maps(2, 4, 8, 8)
    with torch.no_grad():
        before = network(example)
        assert optimize_convolutions(network, example) == 3
        torch.testing.assert_close(network(example), before)
    assert isinstance(network.clamp, nn.Identity)
    assert isinstance(network.first, PackedConvolution), "with a clamp a kernel beats a product"
    assert isinstance(network.shared, nn.ReLU), "called twice, it is nobody's own"
    assert not isinstance(network.smooth, nn.Identity)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, dtype=torch.float16),
        Conv2dSame(4, 4, 3, stride=2),
        Conv2dSame(4, 4, 3, stride=2, groups=4, dilation=2),
    ],
)
def test_what_would_not_gain_stays(conv: nn.Conv2d) -> None:
    assert optimize_convolutions(nn.Sequential(conv)) == 0


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no instructions for bfloat16")
@pytest.mark.parametrize("conv", _CONVOLUTIONS, ids=str)
def test_packed_weights_in_bfloat16_give_the_librarys_bits(conv: nn.Conv2d) -> None:
    half, maps = copy.deepcopy(conv).bfloat16(), _maps(3, 16, 8, 8).bfloat16()
    with torch.no_grad():
        found = PackedConvolution(half)(maps)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, half(maps))


def test_bfloat16_stays_where_the_machine_has_no_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, dtype=torch.bfloat16))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert pack_convolutions(network) == 0


def test_other_machines_keep_the_librarys_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert pack_convolutions(nn.Sequential(nn.Conv2d(4, 4, 3))) == 0
    assert optimize_convolutions(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))) == 1
