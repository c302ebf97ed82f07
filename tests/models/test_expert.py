"""Experts: the key map from the EfficientNet-Lite0 package, checked by equal logits, other networks, adapters."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import nn

from models.bundle.files import sha256
from models.bundle.manifest import ExpertPart, PathSource
from models.bundle.pack import LITE0_PACKAGE, LITE0_SHA256, lite0_part, save_adapters
from models.bundle.parts import load_adapters, load_expert
from models.errors import BundleError, TensorMismatchError
from models.expert import RANK, TimmExpert, adapt, adapters_of, merge_adapters, read_lite0_package
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


def _written(folder: Path, network: nn.Module, model: str, levels: tuple[int, ...], **settings: Any) -> ExpertPart:
    """An expert whose file is a whole timm network's, as timm publishes it."""
    save_file(network.state_dict(), folder / "model.safetensors")
    source = PathSource(path=".", files={"model.safetensors": sha256(folder / "model.safetensors")})
    return ExpertPart(source=source, loader="timm", model=model, levels=levels, **settings)


def _random(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **settings).eval()


def _normalized(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@pytest.mark.parametrize("classes", [1000, 11, 0], ids=["imagenet", "another classifier", "no classifier"])
def test_a_published_resnet_gives_its_maps(tmp_path: Path, classes: int) -> None:
    whole = _random("resnet18.a1_in1k", num_classes=classes)
    expert = load_expert(_written(tmp_path, whole, "resnet18.a1_in1k", (2, 3, 4)), tmp_path).eval()
    pixels = torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        maps, expected = expert(pixels), whole.forward_intermediates(_normalized(pixels), [2, 3, 4])[1]
    assert [level.shape[1] for level in maps] == [128, 256, 512]
    for level, other in zip(maps, expected, strict=True):
        assert (level - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("side", [128, 256, 224], ids=["to 140", "to 266", "whole patches"])
def test_a_published_dinov2_takes_any_size(tmp_path: Path, side: int) -> None:
    name = "vit_small_patch14_dinov2.lvd142m"
    expert = load_expert(_written(tmp_path, _random(name), name, (1, 3)), tmp_path).eval()
    pixels = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = _random(name, dynamic_img_size=True)
    patches = -(-side // 14)
    view = torch.nn.functional.interpolate(pixels, size=(14 * patches,) * 2, mode="bilinear", antialias=True)
    with torch.no_grad():
        maps, expected = expert(pixels), whole.get_intermediate_layers(_normalized(view), n=[1, 3], reshape=True)
    assert [tuple(level.shape[1:]) for level in maps] == [(384, patches, patches)] * 2
    for level, other in zip(maps, expected, strict=True):
        assert (level - other).abs().max() <= 1e-4 * other.abs().max()


def test_an_expert_with_a_resolution_has_a_view_of_its_own(tmp_path: Path) -> None:
    whole = _random("resnet18")
    expert = load_expert(_written(tmp_path, whole, "resnet18", (4,), resolution=96), tmp_path).eval()
    pixels = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    view = torch.nn.functional.interpolate(pixels, size=(96, 96), mode="bilinear", antialias=True)
    with torch.no_grad():
        (found,), (expected,) = expert(pixels), whole.forward_intermediates(_normalized(view), [4])[1]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("change", "message"), [("lacks", "lacks the tensor"), ("stray", "unknown tensor 'stray'")])
def test_all_but_the_classifier_is_strict(tmp_path: Path, change: str, message: str) -> None:
    whole = _random("resnet18")
    part = _written(tmp_path, whole, "resnet18", (2, 3, 4))
    tensors = whole.state_dict()
    if change == "lacks":
        del tensors["layer2.0.conv1.weight"]
    else:
        tensors["stray"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    files = {"model.safetensors": sha256(tmp_path / "model.safetensors")}
    with pytest.raises(TensorMismatchError, match=message):
        load_expert(part.model_copy(update={"source": PathSource(path=".", files=files)}), tmp_path)


@pytest.mark.parametrize(
    ("name", "levels", "message"),
    [("resnet99", (1,), "no model 'resnet99'"), ("resnet18", (9,), "gives no maps at the levels")],
    ids=["no model", "no level"],
)
def test_a_network_that_timm_does_not_have_is_refused(name: str, levels: tuple[int, ...], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        TimmExpert(name, levels)


def test_an_unknown_key_map_is_refused(tmp_path: Path) -> None:
    part = _written(tmp_path, _random("resnet18"), "resnet18", (2,))
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
