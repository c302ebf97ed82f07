"""Adapters leave a network as it was until they learn, and vanish into its weights when it is loaded."""

from pathlib import Path

import pytest
import torch
from torch import nn

from models.adapters import RANK, adapt, adapters_of, load_adapters, merge, save_adapters
from models.errors import BundleError, TensorMismatchError

PIXELS = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(1))


def network(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, groups=width)
    ).eval()


def taught() -> nn.Sequential:
    """A network whose adapters learnt something."""
    found = network()
    for number, adapter in enumerate(adapt(found)):
        nn.init.normal_(adapter.up, generator=torch.Generator().manual_seed(number))  # type: ignore[arg-type]
    return found


def test_a_new_adapter_changes_nothing_and_is_all_that_learns() -> None:
    plain, adapted = network(), network()
    adapters = adapt(adapted)
    assert torch.equal(plain(PIXELS), adapted(PIXELS))
    learning = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(learning) == len(list(adapters.parameters())) == 4
    assert all(parameter.shape[0] <= RANK or parameter.shape[1] <= RANK for parameter in learning)


def test_adapters_learn_and_the_weights_below_stay() -> None:
    adapted = taught()
    adapted(PIXELS).square().mean().backward()
    assert all(parameter.grad is not None for parameter in adapters_of(adapted).parameters())
    assert adapted[1].weight.grad is None


def test_what_is_saved_is_merged_on_loading(tmp_path: Path) -> None:
    adapted = taught()
    save_adapters(adapted, tmp_path / "a.safetensors")
    loaded = network()
    load_adapters(loaded, tmp_path / "a.safetensors")
    merge(loaded)
    assert set(loaded.state_dict()) == set(network().state_dict())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        wanted, found = adapted(PIXELS), loaded(PIXELS)
    assert not torch.allclose(found, network()(PIXELS), atol=0.1)
    assert torch.allclose(found, wanted, rtol=1e-2, atol=1e-2)  # half precision


def test_adapters_of_another_network_are_refused(tmp_path: Path) -> None:
    save_adapters(taught(), tmp_path / "a.safetensors")
    with pytest.raises(TensorMismatchError, match=r"0\.up"):
        load_adapters(network(width=12), tmp_path / "a.safetensors")
    with pytest.raises(BundleError, match="not a readable"):
        load_adapters(network(), tmp_path / "none.safetensors")
