"""The adapted expert: features at several strides from a frozen timm or open_clip network, with low-rank adapters.

An adapter adds two thin matrices to a convolution's weight (LoRA, Hu et al. 2021, arXiv 2106.09685). Training learns
the adapters alone; loading a bundle merges them into the weights, so that they cost nothing in serving.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.utils import parametrize

from models.clip import ClipImages
from models.errors import BundleError, TensorMismatchError
from models.heads.posteriors import ExpertClassifier
from models.resizing import resized, whole_patches

RANK = 6  # of every adapter
_CLASSIFIER_PARTS = {"embed.0": "conv_head", "embed.1": "bn2", "linear": "classifier"}  # our names to timm's


class TimmExpert(nn.Module):
    """Feature maps of a timm network at `levels` (timm's `out_indices`), high to low resolution.

    Args:
        name: timm's model name.
        levels: as above; blocks of a vision transformer, whose maps all have one size.
        resolution: side of the expert's own view, px; None for the given pixels' size.

    Raises:
        BundleError: timm has no such model, or the model has no maps at these levels or takes one size alone.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, name: str, levels: Sequence[int], resolution: int | None = None) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise BundleError(f"timm has no model '{name}'")
        found = timm.get_pretrained_cfg(name)
        # A transformer is built for one size unless it resamples its position embeddings in each pass.
        sizes = {"dynamic_img_size": True} if found is not None and found.fixed_input_size else {}
        try:
            self.network = timm.create_model(
                name, pretrained=False, features_only=True, out_indices=tuple(levels), **sizes
            )
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as err:
            raise BundleError(f"timm's '{name}' gives no maps at the levels {list(levels)}: {err}") from err
        self.name = name
        self.resolution = resolution
        patch = getattr(getattr(self.network, "model", None), "patch_embed", None)
        self.patch_size = int(patch.patch_size[0]) if patch is not None else 1
        mean, std = (torch.tensor(self.network.default_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        # (([-1, 1] + 1) / 2 - mean) / std as one product and one sum.
        self.register_buffer("shift", (1 - 2 * mean) / (2 * std), persistent=False)
        self.register_buffer("scale", 1 / (2 * std), persistent=False)
        self._is_unit = bool((mean == 0.5).all() and (std == 0.5).all())  # then [-1, 1] needs no normalisation

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """[B, 3, H, W] in [-1, 1] → one [B, C, h, w] per level."""
        height, width = (whole_patches(self.resolution or int(side), self.patch_size) for side in pixels.shape[2:])
        pixels = resized(pixels, (height, width))
        maps: list[torch.Tensor] = self.network(pixels if self._is_unit else pixels * self.scale + self.shift)
        return maps

    def published_names(self) -> tuple[dict[str, str], set[str]]:
        """Returns the names that timm's own file of this model gives the tensors of `network`, and names to ignore.

        Ignored are tensors that the levels do not need: the classifier, of any number of classes, and later blocks.
        """
        with torch.device("meta"):  # names only
            whole = timm.create_model(self.name, pretrained=False).state_dict()
        # A network of feature maps flattens some names (`stages.0` to `stages_0`) and prefixes others (`model.`).
        flat = {name.replace(".", "_"): name for name in whole}
        names = {own: flat[own.removeprefix("model.").replace(".", "_")] for own in self.network.state_dict()}
        classifier = getattr(timm.get_pretrained_cfg(self.name), "classifier", None) or ()
        layers = (classifier,) if isinstance(classifier, str) else classifier
        heads = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
        return names, (set(whole) | heads) - set(names.values())


class OpenClipExpert(nn.Module):
    """Token maps of an open_clip vision transformer after several blocks, all of one size.

    Args:
        images: the model's image tower.
        blocks: numbers of the blocks.
        resolution: side of the expert's own view, px, to the next whole patch; None for the tower's own size.
    """

    def __init__(self, images: ClipImages, blocks: Sequence[int], resolution: int | None = None) -> None:
        super().__init__()
        self.images = images
        self.blocks = tuple(blocks)
        self.side = images.whole_side(resolution or images.side)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """[B, 3, H, W] in [-1, 1] → one [B, C, h, w] per block."""
        tower = self.images.tower(self.side)
        tokens = tower.forward_intermediates(
            self.images.normalized(pixels, self.side), indices=list(self.blocks), intermediates_only=True
        )
        maps: list[torch.Tensor] = tokens["image_intermediates"]
        return maps


def timm_classifier(name: str) -> ExpertClassifier:
    """Returns the end of a timm network, with random weights, whose state dict has the names of `classifier_names`.

    Raises:
        BundleError: the network does not end as an EfficientNet does.
    """
    whole: Any = timm.create_model(name, pretrained=False)
    parts = [getattr(whole, part, None) for part in _CLASSIFIER_PARTS.values()]
    if any(part is None for part in parts) or not isinstance(whole.classifier, nn.Linear):
        raise BundleError(f"class posteriors need an expert that ends as an EfficientNet does, and '{name}' does not")
    return ExpertClassifier(nn.Sequential(whole.conv_head, whole.bn2), whole.classifier)


def classifier_names(classifier: ExpertClassifier) -> dict[str, str]:
    """Returns the names that timm gives the tensors of `timm_classifier`."""
    named = {}
    for own in classifier.state_dict():
        part = next(part for part in _CLASSIFIER_PARTS if own.startswith(f"{part}."))
        named[own] = _CLASSIFIER_PARTS[part] + own.removeprefix(part)
    return named


def read_lite0_package(file: Path, target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the EfficientNet-Lite0 package's weights under timm's names.

    Args:
        file: the package's `.pth`.
        target: the state dict to fill: timm's `tf_efficientnet_lite0`, with or without its classifier.

    Raises:
        TensorMismatchError: names or shapes do not line up.
    """
    source = torch.load(file, map_location="cpu", weights_only=True)  # executes nothing
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if len(source) != len(whole):
        raise TensorMismatchError(f"{file} holds {len(source)} tensors, not {len(whole)}")
    renamed = {}
    # Both networks order their tensors alike; a test compares their logits.
    for (name, tensor), (wanted, like) in zip(source.items(), whole.items(), strict=True):
        if tensor.shape != like.shape:
            raise TensorMismatchError(f"{file}: the tensor '{name}' is {tuple(tensor.shape)}, not {tuple(like.shape)}")
        renamed[wanted] = tensor
    return {name: renamed[name] for name in target}


class LowRank(nn.Module):
    """Adapter of one weight W, seen as a matrix [out, everything else]: W + up · down, at first W itself."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(RANK, rows, columns)
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))  # zero: an adapter starts as the identity

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the adapted weight, of the same shape."""
        return weight + (self.up @ self.down).view_as(weight)


def adapt(network: nn.Module) -> nn.ModuleList:
    """Adds an adapter to every convolution in place, freezes everything else and returns the adapters."""
    network.requires_grad_(False)
    for conv in _convolutions(network):
        parametrize.register_parametrization(conv, "weight", LowRank(conv.weight))
    return adapters_of(network)


def adapters_of(network: nn.Module) -> nn.ModuleList:
    """Returns the adapters of an adapted network."""
    return nn.ModuleList(module for module in network.modules() if isinstance(module, LowRank))


def adapter_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Returns `<convolution>.down` and `<convolution>.up` of every adapter; they share memory with the network."""
    return {
        f"{name.removesuffix('.parametrizations.weight.0')}.{side}": getattr(module, side)
        for name, module in network.named_modules()
        if isinstance(module, LowRank)
        for side in ("down", "up")
    }


def merge_adapters(network: nn.Module) -> None:
    """Adds every adapter to its convolution's weight, removes it, and freezes the network."""
    for conv in _convolutions(network):
        if parametrize.is_parametrized(conv, "weight"):
            parametrize.remove_parametrizations(conv, "weight", leave_parametrized=True)  # keeps the sum
    network.requires_grad_(False)


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]
