"""Reads exactly the tensors of a module from a safetensors file, under the names that its publisher gave them."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from models.errors import BundleError, TensorMismatchError

CLIP_TEXT_PREFIX = "clip-text-prefix"  # of CLIP text models saved before transformers 5, as in Stable Diffusion
VAE_OLD_ATTENTION = "vae-old-attention"  # of VAEs saved before diffusers 0.17, as in Stable Diffusion 1 and 2
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_ATTENTION = re.compile(r"(.*\.attentions\.\d+\.)(to_q|to_k|to_v|to_out\.0)(\.(?:weight|bias))")


def read_tensors(
    file: Path,
    wanted: Mapping[str, torch.Tensor],
    *,
    ignored: Collection[str] = (),
    key_map: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Reads exactly the tensors of a module.

    Args:
        file: a safetensors file.
        wanted: the module's state dict, for names and shapes (tensors may be on `meta`).
        ignored: names of further tensors that the file may hold: those of removed blocks.
        key_map: how the file names the tensors; None for the module's own names.
        dtype: of the floating tensors that are returned.

    Raises:
        TensorMismatchError: a tensor is missing, unknown or of another shape.
        BundleError: the file is not safetensors, or there is no such key map.
    """
    try:
        with safe_open(file, framework="pt") as opened:  # no pickle: reading executes nothing
            held = set(opened.keys())
            stored = {name: stored_name(key_map, name) for name in (*wanted, *ignored)}
            if missing := sorted({stored[name] for name in wanted} - held):
                raise TensorMismatchError(f"{file} lacks the tensor '{missing[0]}' ({len(missing)} missing)")
            if extra := sorted(held - set(stored.values()) - set(ignored)):
                raise TensorMismatchError(f"{file} holds the unknown tensor '{extra[0]}' ({len(extra)} too many)")
            tensors = {}
            for name, like in wanted.items():
                tensor = opened.get_tensor(stored[name])
                is_kernel = tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
                # Some of these files store attention as 1×1 convolutions.
                if key_map == VAE_OLD_ATTENTION and is_kernel and _ATTENTION.fullmatch(name):
                    tensor = tensor[:, :, 0, 0]
                if tensor.shape != like.shape:
                    raise TensorMismatchError(
                        f"{file}: the tensor '{name}' is {tuple(tensor.shape)}, not {tuple(like.shape)}"
                    )
                tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
            return tensors
    except (SafetensorError, OSError) as err:
        raise BundleError(f"{file} is not a readable safetensors file") from err


def stored_name(key_map: str | None, name: str) -> str:
    """Returns the name that a file gives a module's tensor. Raises BundleError if there is no such key map."""
    if key_map is None:
        return name
    if key_map == CLIP_TEXT_PREFIX:
        return f"text_model.{name}"
    if key_map == VAE_OLD_ATTENTION:
        found = _ATTENTION.fullmatch(name)
        return f"{found[1]}{_OLD_ATTENTION[found[2]]}{found[3]}" if found else name
    raise BundleError(f"no key map '{key_map}'")
