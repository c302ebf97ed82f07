"""Frozen Stable Diffusion as a feature extractor: VAE mean, one fixed noise, one truncated U-Net pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from torch import nn

from models.errors import BundleError
from models.resizing import resized


class _PassThrough(nn.Module):
    """Last up block of a truncated U-Net: returns its input.

    diffusers upsamples by a fixed factor in every block but the one it takes for the last, where it asks for the exact
    size. Without this block an odd latent size silently gives the wrong map.
    """

    resnets = ()
    has_cross_attention = False

    def forward(self, hidden_states: torch.Tensor, **_kwargs: Any) -> torch.Tensor:
        """Returns the hidden states unchanged."""
        return hidden_states


def build_vae_encoder(config: Mapping[str, Any]) -> AutoencoderKL:
    """Returns an AutoencoderKL on the `meta` device without its decoder."""
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(config))
    vae.decoder = nn.Identity()
    vae.post_quant_conv = None  # belongs to the decoder
    return vae


def build_tiny_encoder(config: Mapping[str, Any]) -> AutoencoderTiny:
    """Returns an AutoencoderTiny on the `meta` device without its decoder."""
    with torch.device("meta"):
        vae = AutoencoderTiny.from_config(dict(config))
    vae.decoder = nn.Identity()
    return vae


def build_truncated_unet(config: Mapping[str, Any], taps: Sequence[str]) -> UNet2DConditionModel:
    """Returns a U-Net on the `meta` device that ends after the last tapped block.

    `forward` is the library's own, and later blocks are never allocated. Do not save this model: its config still
    describes the whole U-Net.

    Raises:
        BundleError: no block of this U-Net has the name of a tap.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    needed_by = {"mid": 0, **{f"up_{number}": number + 1 for number in range(len(unet.up_blocks))}}
    if unknown := [tap for tap in taps if tap not in needed_by]:
        raise BundleError(f"no tap '{unknown[0]}': this U-Net has {', '.join(needed_by)}")
    needed = max(needed_by[tap] for tap in taps)
    blocks = list(unet.up_blocks[:needed])
    if needed < len(unet.up_blocks):
        blocks.append(_PassThrough())
    unet.up_blocks = nn.ModuleList(blocks)
    unet.conv_norm_out = None  # `forward` skips a missing norm, but not a missing convolution
    unet.conv_out = nn.Identity()
    return unet


def fixed_noise(seed: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Returns the noise that every image gets, [1, C, h, w] float32 on the CPU (docs/adr/0001)."""
    # Drawn on the CPU: generators of other devices give other numbers.
    return torch.randn((1, channels, height, width), generator=torch.Generator().manual_seed(seed))


def add_noise(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """Returns x_t = sqrt(ā_t) x_0 + sqrt(1 − ā_t) ε (Ho et al. 2020, eq. 4), with one time step per sample.

    Args:
        latents: [B, C, h, w], scaled.
        noise: [1, C, h, w].
        timesteps: [B] int64.
        alphas_cumprod: [1000] float32.

    Returns:
        [B, C, h, w].
    """
    alphas = alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1)  # float32, unlike the latents
    return (alphas.sqrt() * latents + (1 - alphas).sqrt() * noise).to(latents.dtype)


class StableDiffusionBackbone(nn.Module):
    """Maps images and text states to a pyramid of tapped feature maps.

    Not thread-safe: hooks store the maps of a pass in the module. Of the scheduler only the noise schedule is used.
    `resolution` is the side of its own view, px; None for the given pixels' size.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        unet: UNet2DConditionModel,
        scheduler_config: Mapping[str, Any],
        *,
        taps: Sequence[str],
        noise_seed: int,
        is_noiseless: bool = False,
        resolution: int | None = None,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.unet = unet
        self._is_tiny = isinstance(vae, AutoencoderTiny)
        self.taps = tuple(taps)
        self.resolution = resolution
        self.noise_seed = noise_seed
        self.is_noiseless = is_noiseless  # for a U-Net trained on clean latents (CleanDIFT, Stracke et al. 2025)
        self.scaling_factor = float(vae.config["scaling_factor"])
        # Not a buffer: `module.to(bfloat16)` would round the schedule.
        self.alphas_cumprod: torch.Tensor = DDPMScheduler.from_config(dict(scheduler_config)).alphas_cumprod.float()
        self._noise: dict[tuple[int, int], torch.Tensor] = {}
        self._schedule: dict[torch.device, torch.Tensor] = {}
        self._tapped: dict[str, torch.Tensor] = {}
        for tap in self.taps:
            block = unet.mid_block if tap == "mid" else unet.up_blocks[int(tap.removeprefix("up_"))]
            block.register_forward_hook(self._hook(tap))

    def forward(
        self, pixels: torch.Tensor, timesteps: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Runs one pass; returns tap name → [B, C, h, w].

        Args:
            pixels: [B, 3, H, W] in [-1, 1], RGB; H and W multiples of the VAE's factor.
            timesteps: [B] int64.
            encoder_hidden_states: [B, T, C] text states.
        """
        return self.taps_of(self.latents(pixels), timesteps, encoder_hidden_states)

    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns the scaled posterior mean, [B, C, h, w], of [B, 3, H, W] in [-1, 1]."""
        encoded: Any = self.vae.encode(self.view(pixels))
        # The mean, not a sample: features must not be random. A distilled VAE knows the mean alone.
        mean: torch.Tensor = encoded.latents if self._is_tiny else encoded.latent_dist.mean
        return mean * self.scaling_factor

    def view(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns [B, 3, H, W] at the size that the VAE sees."""
        return pixels if self.resolution is None else resized(pixels, (self.resolution, self.resolution))

    def taps_of(
        self, latents: torch.Tensor, timesteps: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns what `forward` returns, from latents [B, C, h, w]: training caches those."""
        noisy = latents
        if not self.is_noiseless:
            noisy = add_noise(latents, self._noise_like(latents), timesteps, self._schedule_on(latents.device))
        self._tapped.clear()  # left over if the pass before failed half way
        self.unet(noisy, timesteps, encoder_hidden_states=encoder_hidden_states)
        tapped = dict(self._tapped)
        self._tapped.clear()  # else the maps of a pass stay in memory until the next one
        return tapped

    def _hook(self, tap: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._tapped[tap] = output

        return hook

    def _schedule_on(self, device: torch.device) -> torch.Tensor:
        # Copied once: a copy in every pass makes the launching thread wait, and a CUDA graph may not contain one.
        if device not in self._schedule:
            self._schedule[device] = self.alphas_cumprod.to(device)
        return self._schedule[device]

    def _noise_like(self, latents: torch.Tensor) -> torch.Tensor:
        # `int`, because a tracer sees sizes as tensors, and equal tensors are different keys.
        key = (int(latents.shape[2]), int(latents.shape[3]))
        if key not in self._noise:
            noise = fixed_noise(self.noise_seed, latents.shape[1], *key)
            self._noise[key] = noise.to(device=latents.device, dtype=latents.dtype)
        return self._noise[key]
