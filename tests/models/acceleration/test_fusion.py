"""Fusing changes speed and nothing else."""

import pytest
import timm
import torch
from torch import nn

from models.acceleration.fusion import fuse_batch_norms


def _shaken(network: nn.Module) -> nn.Module:
    """Norms with statistics and weights of their own: fresh ones are nearly the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_var, 0.5), (module.running_mean, -0.5), (module.weight, 0.5)):
                assert tensor is not None
                tensor.data = torch.rand(tensor.shape, generator=generator) + low
    return network.eval()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_a_timm_network_is_the_same_function(name: str) -> None:
    network = _shaken(timm.create_model(name, pretrained=False, features_only=True))
    example = torch.rand((2, 3, 96, 96), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = network(example)
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        assert fuse_batch_norms(network, example) == norms
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        for old, new in zip(before, network(example), strict=True):
            assert (old - new).norm() <= 1e-5 * old.norm()


def test_a_norm_after_a_shared_convolution_or_after_none_stays() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.one, self.two, self.free = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.free(self.one(self.conv(pixels)) + self.two(self.conv(pixels)))
            return out

    network = _shaken(Odd())
    assert fuse_batch_norms(network, torch.rand(1, 3, 8, 8)) == 0
