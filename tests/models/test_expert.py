"""Experts: the key map from the EfficientNet-Lite0 package, checked by equal logits, other networks, adapters."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import nn

from models.bundle.build import load_adapters, load_expert
from models.bundle.files import sha256
from models.bundle.manifest import ExpertPart, PathSource
from models.bundle.pack import LITE0_PACKAGE, LITE0_SHA256, lite0_part, save_adapters
from models.errors import BundleError, TensorMismatchError
from models.expert import RANK, OpenClipExpert, TimmExpert, adapt, adapters_of, merge_adapters, read_lite0_package
from models.text import package_folder

WEIGHTS = package_folder(LITE0_PACKAGE) / "models" / "efficientnet-lite0-57934424.pth"
PIXELS = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def whole() -> Any:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    network.load_state_dict(read_lite0_package(WEIGHTS, network.state_dict()))
    return network


@pytest.mark.parametrize("side", [96, 128, 224])
def test_renamed_weights_give_the_packages_own_logits(whole: Any, side: int) -> None:
    own = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    own.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    pixels = torch.rand((2, 3, side, side), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert (whole(pixels) - own(pixels)).abs().max() <= 1e-5


def test_levels_are_the_whole_networks_own_maps(whole: Any, tmp_path: Path) -> None:
    expert = load_expert(lite0_part(), tmp_path).eval()
    pixels = torch.rand((2, 3, 128, 128), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        maps = expert(pixels)
        _, expected = whole.forward_intermediates(pixels, indices=[1, 2, 3, 4])
    assert [tuple(level.shape[1:]) for level in maps] == [(24, 32, 32), (40, 16, 16), (112, 8, 8), (320, 4, 4)]
    for level, other in zip(maps, expected, strict=True):
        assert torch.equal(level, other)


def test_the_packages_file_is_the_one_that_was_checked() -> None:
    assert sha256(WEIGHTS) == LITE0_SHA256


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(TensorMismatchError, match="holds 1 tensors"):
        read_lite0_package(tmp_path / "other.pth", {})


def test_a_pickle_with_code_is_never_run(tmp_path: Path) -> None:
    torch.save({"weight": Path("code")}, tmp_path / "code.pth")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        read_lite0_package(tmp_path / "code.pth", {})


def test_a_network_with_its_own_normalisation_gets_it() -> None:
    expert = TimmExpert("resnet18", (2, 3, 4)).eval()
    reference = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(2, 3, 4)).eval()
    reference.load_state_dict(expert.network.state_dict())
    pixels = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        maps = expert(pixels)
        expected = reference(((pixels + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    for level, other in zip(maps, expected, strict=True):
        assert torch.allclose(level, other, rtol=1e-4, atol=1e-4)


def _part(folder: Path, expert: torch.nn.Module, loader: str, model: str, levels: tuple[int, ...]) -> ExpertPart:
    save_file(expert.state_dict(), folder / "expert.safetensors")
    source = PathSource(path=".", files={"expert.safetensors": sha256(folder / "expert.safetensors")})
    return ExpertPart.model_validate({"source": source, "loader": loader, "model": model, "levels": levels})


def test_an_open_clip_tower_gives_a_map_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "test-tiny", small)
    written = OpenClipExpert("test-tiny", (0, 2)).eval()
    read = load_expert(_part(tmp_path, written, "open_clip", "test-tiny", (0, 2)), tmp_path).eval()
    pixels = torch.rand((2, 3, 128, 128), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        maps, again = written(pixels), read(pixels)
    assert [tuple(level.shape) for level in maps] == [(2, 64, 4, 4)] * 2
    assert all(torch.equal(level, other) for level, other in zip(maps, again, strict=True))


def test_an_unknown_key_map_is_refused(tmp_path: Path) -> None:
    part = _part(tmp_path, TimmExpert("resnet18", (2,)), "timm", "resnet18", (2,))
    with pytest.raises(BundleError, match="no key map 'other'"):
        load_expert(part.model_copy(update={"key_map": "other"}), tmp_path)


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
    merge_adapters(loaded)
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
