"""What files of other ecosystems, or of older releases, call the tensors of today's modules."""

import re

import torch

from models.errors import BundleError

CLIP_TEXT_PREFIX = "clip-text-prefix"
"""CLIP text models saved before transformers 5 (Stable Diffusion's among them) carry `text_model.` before each name."""

VAE_OLD_ATTENTION = "vae-old-attention"
"""Stable Diffusion 1's and 2's VAE files name attention as diffusers did before 0.17, some with 1×1 kernels."""

_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_ATTENTION = re.compile(r"(.*\.attentions\.\d+\.)(to_q|to_k|to_v|to_out\.0)(\.(?:weight|bias))")


def stored_name(key_map: str | None, name: str) -> str:
    """The file's name for a module's tensor.

    Raises:
        BundleError: no such key map.
    """
    if key_map is None:
        return name
    if key_map == CLIP_TEXT_PREFIX:
        return f"text_model.{name}"
    if key_map == VAE_OLD_ATTENTION:
        found = _ATTENTION.fullmatch(name)
        return f"{found[1]}{_OLD_ATTENTION[found[2]]}{found[3]}" if found else name
    raise BundleError(f"no key map '{key_map}'")


def stored_shape(key_map: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the module's shape: attention stored as 1×1 convolutions loses its two last sides."""
    is_kernel = tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
    if key_map == VAE_OLD_ATTENTION and is_kernel and _ATTENTION.fullmatch(name):
        return tensor[:, :, 0, 0]
    return tensor
