"""The one noise tensor of a bundle, and the forward process q(x_t | x_0)."""

import torch


def fixed_noise(seed: int, channels: int, height: int, width: int) -> torch.Tensor:
    """The noise every picture gets, whatever its slot in a batch: [1, C, h, w] float32, on the CPU.

    Drawn on the CPU, so that every device sees the same numbers.
    """
    return torch.randn((1, channels, height, width), generator=torch.Generator().manual_seed(seed))


def add_noise(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """x_t = sqrt(ā_t) x_0 + sqrt(1 − ā_t) ε (Ho et al. 2020, eq. 4), with a time step a sample.

    Args:
        latents: [B, C, h, w] scaled latents.
        noise: [1, C, h, w].
        timesteps: [B] int64.
        alphas_cumprod: [1000] float32.

    Returns:
        [B, C, h, w].
    """
    kept = alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1)
    return (kept.sqrt() * latents + (1 - kept).sqrt() * noise).to(latents.dtype)
