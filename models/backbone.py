"""Frozen Stable Diffusion as a feature extractor: VAE mean, one fixed noise, one truncated U-Net pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn

from models.errors import BundleError
from models.noise import add_noise, fixed_noise

StateDict = Mapping[str, torch.Tensor]


class _PassThrough(nn.Module):
    """A last up block that hands its input on.

    diffusers' `forward` upsamples by a fixed factor in every block but the one it believes final, where it asks for
    the exact size; without this block an odd latent size silently gives the wrong map.
    """

    resnets = ()
    has_cross_attention = False

    def forward(self, hidden_states: torch.Tensor, **_kwargs: Any) -> torch.Tensor:
        """The hidden states, untouched."""
        return hidden_states


class _NoScaling:
    """Stands where diffusers keeps an output scale of 1.0: `maps / scale` gives the maps, not a copy of them."""

    def __rtruediv__(self, maps: torch.Tensor) -> torch.Tensor:
        return maps


def tap_blocks(taps: Sequence[str], up_blocks: int) -> int:
    """How many up blocks must be kept for these taps.

    Raises:
        BundleError: a tap that no block of this U-Net has.
    """
    known = {"mid": 0, **{f"up_{number}": number + 1 for number in range(up_blocks)}}
    for tap in taps:
        if tap not in known:
            raise BundleError(f"no tap '{tap}': this U-Net has {', '.join(known)}")
    return max(known[tap] for tap in taps)


def build_vae_encoder(config: Mapping[str, Any]) -> AutoencoderKL:
    """An AutoencoderKL on the `meta` device without its decoder."""
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(config))
    vae.decoder = nn.Identity()
    vae.post_quant_conv = None
    return vae


def build_truncated_unet(config: Mapping[str, Any], taps: Sequence[str]) -> UNet2DConditionModel:
    """A U-Net on the `meta` device that ends after the last tapped block.

    Its `forward` is the library's own; what lies behind the cut is never allocated. Never save this model: its config
    still describes the whole one.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    kept = tap_blocks(taps, len(unet.up_blocks))
    blocks = list(unet.up_blocks[:kept])
    if kept < len(unet.up_blocks):
        blocks.append(_PassThrough())
    unet.up_blocks = nn.ModuleList(blocks)
    unet.conv_norm_out = None
    unet.conv_out = nn.Identity()
    return unet


def _skip_idle_scaling(network: nn.Module) -> None:
    """Spare every residual and attention block a division of its whole map by one; the bits stay the same."""
    for module in network.modules():
        for name in ("output_scale_factor", "rescale_output_factor"):
            if getattr(module, name, None) == 1.0:
                setattr(module, name, _NoScaling())


class StableDiffusionBackbone(nn.Module):
    """Pictures and text states in, a pyramid of tapped maps out."""

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler_config: Mapping[str, Any],
        *,
        taps: Sequence[str],
        noise_seed: int,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.unet = unet
        _skip_idle_scaling(vae)
        _skip_idle_scaling(unet)
        self.taps = tuple(taps)
        self.noise_seed = noise_seed
        self.scaling_factor = float(vae.config["scaling_factor"])
        # Not a buffer: `module.to(bfloat16)` would round the schedule.
        self.alphas_cumprod: torch.Tensor = DDPMScheduler.from_config(dict(scheduler_config)).alphas_cumprod.float()
        self._noise: dict[tuple[int, int], torch.Tensor] = {}
        self._schedule: dict[torch.device, torch.Tensor] = {}
        self._tapped: dict[str, torch.Tensor] = {}
        for tap in self.taps:
            block = unet.mid_block if tap == "mid" else unet.up_blocks[int(tap.removeprefix("up_"))]
            block.register_forward_hook(self._keep(tap))

    def forward(
        self, pixels: torch.Tensor, timesteps: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One pass.

        Args:
            pixels: [B, 3, H, W] in [-1, 1], RGB; H and W multiples of the VAE's factor.
            timesteps: [B] int64.
            encoder_hidden_states: [B, T, C] text states.

        Returns:
            Tap name → [B, C, h, w].
        """
        return self.taps_of(self.latents(pixels), timesteps, encoder_hidden_states)

    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """The scaled posterior mean, [B, C, h, w], of [B, 3, H, W] in [-1, 1]."""
        mean: torch.Tensor = self.vae.encode(pixels).latent_dist.mean
        return mean * self.scaling_factor

    def taps_of(
        self, latents: torch.Tensor, timesteps: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The second half of `forward`, for latents that are kept: head training encodes each picture once."""
        noisy = add_noise(latents, self._noise_like(latents), timesteps, self._schedule_on(latents.device))
        self._tapped.clear()
        self.unet(noisy, timesteps, encoder_hidden_states=encoder_hidden_states)
        tapped = dict(self._tapped)
        self._tapped.clear()
        return tapped

    def _keep(self, tap: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._tapped[tap] = output

        return hook

    def _schedule_on(self, device: torch.device) -> torch.Tensor:
        """Copied once: a copy in the midst of every pass makes the launching thread wait, and no graph may hold one."""
        if device not in self._schedule:
            self._schedule[device] = self.alphas_cumprod.to(device)
        return self._schedule[device]

    def _noise_like(self, latents: torch.Tensor) -> torch.Tensor:
        # Numbers, whoever asks: to a tracer sizes are tensors, and equal ones are different keys.
        key = (int(latents.shape[2]), int(latents.shape[3]))
        if key not in self._noise:
            noise = fixed_noise(self.noise_seed, latents.shape[1], *key)
            self._noise[key] = noise.to(device=latents.device, dtype=latents.dtype)
        return self._noise[key]
