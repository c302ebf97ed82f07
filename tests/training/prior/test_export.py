"""Exported weights load in diffusers itself and name no path of the machine that wrote them."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from models.errors import DataError
from training.prior.unet import export_prior, half_state, new_unet
from training.prior.vae import new_vae


def test_the_exported_prior_loads_and_equals_what_was_trained(tmp_path: Path) -> None:
    runs, target = tmp_path / "runs", tmp_path / "bundle"
    vae, unet = new_vae(), new_unet()
    vae.register_to_config(scaling_factor=0.7)
    vae.save_pretrained(runs / "vae" / "export")
    unet.save_pretrained(runs / "unet" / "export")
    counts = export_prior(runs, target)
    assert sum(counts.values()) * 2 < 28e6  # leaves room for two heads
    again = AutoencoderKL.from_pretrained(target / "vae")
    assert again.config["scaling_factor"] == 0.7
    for name, tensor in vae.state_dict().items():
        assert torch.equal(again.state_dict()[name].half(), tensor.half())
    loaded = UNet2DConditionModel.from_pretrained(target / "unet", torch_dtype=torch.float16)
    assert loaded.config["cross_attention_dim"] == 384
    assert DDPMScheduler.from_pretrained(target / "scheduler").config["prediction_type"] == "epsilon"
    for file in target.rglob("*.json"):
        assert str(tmp_path) not in file.read_text()


def test_an_unfinished_run_and_overflowing_weights_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no vae in"):
        export_prior(tmp_path, tmp_path / "bundle")
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, 1e6)
    with pytest.raises(DataError, match="weight is not finite"):
        half_state(layer)
