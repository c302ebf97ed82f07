"""Puts what was trained into a bundle's folders, half precision, diffusers' own layout."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from models.errors import DataError
from training.prior.unet import new_scheduler

WEIGHTS = "diffusion_pytorch_model.safetensors"


def export_prior(runs: Path, target: Path) -> dict[str, int]:
    """Writes vae/, unet/ and scheduler/ of a bundle from the last finished runs.

    Args:
        runs: folder of the runs; `vae/export` and `unet/export` are read.
        target: the bundle's folder, made when absent.

    Returns:
        Number of parameters by component.

    Raises:
        DataError: a run has not finished.
    """
    vae = AutoencoderKL.from_pretrained(finished(runs, "vae"))
    unet = UNet2DConditionModel.from_pretrained(finished(runs, "unet"))
    counts = {"vae": write_component(vae, target / "vae"), "unet": write_component(unet, target / "unet")}
    new_scheduler().save_pretrained(target / "scheduler")
    return counts


def finished(runs: Path, stage: str) -> Path:
    """The folder of what a stage trained.

    Raises:
        DataError: it has not finished.
    """
    folder = runs / stage / "export"
    if not (folder / "config.json").is_file():
        raise DataError(f"no {stage} in {runs / stage}: run `vermouth train {stage}`")
    return folder


def write_component(module: Any, folder: Path) -> int:
    """One diffusers folder: config.json without this machine's paths, weights as float16.

    Args:
        module: a diffusers model.
        folder: made when absent.

    Returns:
        Number of parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in json.loads(module.to_json_string()).items() if key != "_name_or_path"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(half_state(module), folder / WEIGHTS, metadata={"format": "pt"})
    return sum(parameter.numel() for parameter in module.parameters())


def half_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's tensors, floating ones as float16, contiguous.

    Raises:
        DataError: a weight does not survive half precision.
    """
    state = {}
    for name, tensor in module.state_dict().items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        if not bool(torch.isfinite(half).all()):
            raise DataError(f"{name} is not finite in half precision")
        state[name] = half.contiguous()
    return state
