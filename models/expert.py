"""The frozen expert: discriminative features at several strides, by timm or open_clip."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import open_clip
import timm
import torch
from torch import nn

from models.errors import TensorMismatchError


class TimmExpert(nn.Module):
    """A timm network's feature maps, high to low resolution."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, name: str, levels: Sequence[int]) -> None:
        super().__init__()
        self.network = timm.create_model(name, pretrained=False, features_only=True, out_indices=tuple(levels))
        mean, std = (torch.tensor(self.network.default_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("shift", (1 - 2 * mean) / (2 * std), persistent=False)
        self.register_buffer("scale", 1 / (2 * std), persistent=False)
        self._is_unit = bool((mean == 0.5).all() and (std == 0.5).all())

    @property
    def channels(self) -> list[int]:
        """Channels of each level."""
        return list(self.network.feature_info.channels())

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """[B, 3, H, W] in [-1, 1] → one [B, C, h, w] a level."""
        # [-1, 1] is what a network normalised with mean and std 0.5 takes; others get their own.
        maps: list[torch.Tensor] = self.network(pixels if self._is_unit else pixels * self.scale + self.shift)
        return maps


class OpenClipExpert(nn.Module):
    """An open_clip vision transformer: the token maps after several blocks, all of one size."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str, blocks: Sequence[int]) -> None:
        super().__init__()
        self.visual = open_clip.create_model(name, pretrained=None).visual
        self.blocks = tuple(blocks)
        mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)

    @property
    def channels(self) -> list[int]:
        """Channels of each block's map."""
        return [int(self.visual.conv1.out_channels)] * len(self.blocks)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """[B, 3, H, W] in [-1, 1] → one [B, C, h, w] a block; pixels are resized to the tower's own size."""
        size = self.visual.image_size
        resized = nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        tokens = self.visual.forward_intermediates(
            ((resized + 1) / 2 - self.mean) / self.std, indices=list(self.blocks), intermediates_only=True
        )
        maps: list[torch.Tensor] = tokens["image_intermediates"]
        return maps


def read_lite0_package(file: Path, target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The EfficientNet-Lite0 package's weights under timm's names.

    Both networks order their tensors alike, so the renaming is a zip of the two state dicts; a test holds their
    logits equal.

    Args:
        file: the package's `.pth`, read without executing anything.
        target: the state dict to fill: timm's `tf_efficientnet_lite0`, with or without its classifier.

    Raises:
        TensorMismatchError: names or shapes do not line up.
    """
    source = torch.load(file, map_location="cpu", weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if len(source) != len(whole):
        raise TensorMismatchError(f"{file} holds {len(source)} tensors, not {len(whole)}")
    renamed = {}
    for (name, tensor), (wanted, like) in zip(source.items(), whole.items(), strict=True):
        if tensor.shape != like.shape:
            raise TensorMismatchError(f"{file}: the tensor '{name}' is {tuple(tensor.shape)}, not {tuple(like.shape)}")
        renamed[wanted] = tensor
    return {name: renamed[name] for name in target}
