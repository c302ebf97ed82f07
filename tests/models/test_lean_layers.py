"""Lean convolutions change speed and nothing else."""

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from models.lean_layers import PointwiseConvolution, SamePaddedDepthwise, lean_convolutions


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


@pytest.mark.parametrize("shape", [(1, 6, 8, 8), (2, 6, 9, 8), (2, 6, 7, 12), (1, 6, 2, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (5, 1), (3, 3), (2, 1)])
def test_uneven_padding_gives_the_same_bits(shape: tuple[int, ...], kernel: int, stride: int) -> None:
    conv = Conv2dSame(6, 6, kernel, stride=stride, groups=6)
    with torch.no_grad():
        assert torch.equal(SamePaddedDepthwise(conv)(_maps(*shape)), conv(_maps(*shape)))


def test_all_that_fits_is_swapped_and_nothing_else() -> None:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    example = _maps(2, 3, 64, 96)
    pointwise = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in network.modules())
    with torch.no_grad():
        before = network(example)
        assert lean_convolutions(network) == pointwise + 4, "four depthwise ones halve their maps"
        for old, new in zip(before, network(example), strict=True):
            assert (old - new).norm() <= 1e-5 * old.norm()
    assert isinstance(network.conv_stem, Conv2dSame), "it mixes its channels"


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 3),
        Conv2dSame(4, 4, 3, stride=2),
        Conv2dSame(4, 4, 3, stride=2, groups=4, dilation=2),
    ],
)
def test_what_is_no_plain_pointwise_or_depthwise_convolution_stays(conv: nn.Conv2d) -> None:
    assert lean_convolutions(nn.Sequential(conv)) == 0
