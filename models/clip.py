"""CLIP's image tower (Radford et al. 2021) in open_clip's form: embeddings of images and features of patches."""

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from models.errors import BundleError
from models.resizing import resized, whole_patches

OPEN_CLIP_CONFIG = "open_clip_config.json"  # beside the weights in a hub repository


class ClipImages(nn.Module):
    """An image tower for square views of any size, with the normalisation that the model was trained with.

    Not thread-safe: a hook stores the input of the last attention.

    Args:
        visual: open_clip's vision transformer.
        mean, std: of RGB in [0, 1].
        is_bicubic: whether images are resized bicubically, or else bilinearly.

    Raises:
        BundleError: the tower is no vision transformer with a class token and a projection.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, visual: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], *, is_bicubic: bool = True
    ) -> None:
        super().__init__()
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type != "tok":
            raise BundleError("this open_clip model has no vision transformer with a class token: name a ViT")
        self.visual = visual
        self.is_bicubic = is_bicubic
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._towers: dict[int, VisionTransformer] = {}  # by side, apart from the tower's own
        self._attention_input: torch.Tensor | None = None
        visual.transformer.resblocks[-1].ln_1.register_forward_hook(self._store_attention_input)

    @property
    def side(self) -> int:
        """Side of the tower's own view, px."""
        return int(self.visual.image_size[0])

    @property
    def dimension(self) -> int:
        """D, the length of an embedding."""
        return int(self.visual.output_dim)

    def whole_side(self, side: int) -> int:
        """Returns the side rounded up to whole patches, px."""
        return whole_patches(side, int(self.visual.patch_size[0]))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the embeddings and the patch features of images at the tower's own size.

        Args:
            pixels: [B, 3, H, W] in [-1, 1], RGB.

        Returns:
            [B, D] and [B, D, h, w], neither normalised.
        """
        embeddings: torch.Tensor = self.visual(self.normalized(pixels, self.side))
        return embeddings, self._patches(self.side)

    def patches(self, pixels: torch.Tensor, side: int) -> torch.Tensor:
        """Returns features of patches in the space of the embeddings, [B, D, h, w], not normalised.

        Args:
            pixels: [B, 3, H, W] in [-1, 1], RGB.
            side: of the view that the tower sees, px, in whole patches.
        """
        self.tower(side)(self.normalized(pixels, side))
        return self._patches(side)

    def normalized(self, pixels: torch.Tensor, side: int) -> torch.Tensor:
        """Returns [B, 3, side, side] as the tower takes it, from [B, 3, H, W] in [-1, 1]."""
        view = resized(pixels, (side, side), "bicubic" if self.is_bicubic else "bilinear")
        # Bicubic resizing overshoots, and images are cut to their range before they are normalised.
        return (((view.clamp(-1, 1) + 1) / 2 - self.mean) / self.std).to(pixels.dtype)

    def tower(self, side: int) -> VisionTransformer:
        """Returns the tower for views of this side: the same weights, with position embeddings resampled."""
        if side == self.side:
            return self.visual
        if side not in self._towers:
            # A copy of the module alone: all weights but the positions stay those of the first tower.
            tower = copy.copy(self.visual)
            tower._parameters = dict(tower._parameters)
            positions = _resampled(self.visual.positional_embedding, side // int(self.visual.patch_size[0]))
            tower.positional_embedding = nn.Parameter(positions, requires_grad=False)
            self._towers[side] = tower
        return self._towers[side]

    def _patches(self, side: int) -> torch.Tensor:
        """The values of the last attention, projected as its class token is.

        Attention of the last block mixes patches for the sake of the class token: without it each patch keeps its own
        meaning (MaskCLIP, Zhou et al. 2022), most of all without the residual connection and the MLP around it
        (ClearCLIP, Lan et al. 2024).
        """
        tokens, self._attention_input = self._attention_input, None
        if tokens is None:
            raise RuntimeError("no pass of the tower before")
        block = self.visual.transformer.resblocks[-1]
        width = tokens.shape[2]
        weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
        values = block.ls_1(block.attn.out_proj(F.linear(tokens[:, 1:], weight, bias)))
        features: torch.Tensor = self.visual.ln_post(values) @ self.visual.proj
        cells = side // int(self.visual.patch_size[0])
        return features.transpose(1, 2).reshape(features.shape[0], features.shape[2], cells, cells)

    def _store_attention_input(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        self._attention_input = output


def build_open_clip(model: str, config_folder: Path | None) -> nn.Module:
    """Returns an open_clip model on the `meta` device; its image tower carries `preprocess_cfg`.

    Args:
        model: a name that open_clip knows, or any other one for the shape in `open_clip_config.json`.
        config_folder: holds that file, whose means and deviations then count; None if there is none.

    Raises:
        BundleError: open_clip has no such model, or its weights differ in their normalisation and no file says which.
    """
    is_known = open_clip.get_model_config(model) is not None
    if not is_known and config_folder is None:
        raise BundleError(f"open_clip has no model '{model}', and no {OPEN_CLIP_CONFIG} is listed beside its weights")
    name = model if is_known else f"local-dir:{config_folder}"
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns of random weights, which are filled next
    try:
        with torch.device("meta"):
            built: nn.Module = open_clip.create_model(name, load_weights=False, device="meta")
    except (KeyError, RuntimeError, TypeError, ValueError) as err:
        raise BundleError(f"open_clip cannot build '{model}': {err}") from err
    finally:
        logging.disable(silenced)
    visual: Any = built.visual
    if is_known:
        visual.preprocess_cfg |= _normalisation(model) if config_folder is None else _stated(config_folder)
    return built


def tokenizer_of(model: str, config_folder: Path | None) -> Any:
    """Returns open_clip's tokenizer of a model; arguments as for `build_open_clip`."""
    is_known = open_clip.get_model_config(model) is not None
    return open_clip.get_tokenizer(model if is_known else f"local-dir:{config_folder}")


def _normalisation(model: str) -> Mapping[str, Any]:
    """The means and deviations of all published weights of a model."""
    keys = ("mean", "std", "interpolation")
    found = {
        tuple((key, tag[key]) for key in keys if key in tag)
        for tag in (get_pretrained_cfg(model, name) for name in list_pretrained_tags_by_model(model))
    }
    if len(found) > 1:
        raise BundleError(
            f"weights of '{model}' differ in their means and deviations: list {OPEN_CLIP_CONFIG} among its files"
        )
    return dict(found.pop()) if found else {}


def _stated(folder: Path) -> Mapping[str, Any]:
    file = folder / OPEN_CLIP_CONFIG
    try:
        stated: Mapping[str, Any] = json.loads(file.read_text())["preprocess_cfg"]
    except (KeyError, OSError, TypeError, ValueError) as err:
        raise BundleError(f"{file} gives no `preprocess_cfg`") from err
    return stated


def _resampled(positions: torch.Tensor, cells: int) -> torch.Tensor:
    """Returns position embeddings [1 + cells², C] from [1 + n², C], as open_clip resamples them."""
    first, grid = positions[:1], positions[1:]
    old = round(len(grid) ** 0.5)
    grid = resized(grid.T.reshape(1, -1, old, old), (cells, cells), "bicubic")
    return torch.cat([first, grid.flatten(2)[0].T])
