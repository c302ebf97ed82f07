"""What a stage has learnt, to look at: reconstructions and samples as PNG."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image

from training.prior.corpus import Corpus, to_tensor
from training.prior.unet import new_scheduler


def save_grid(tiles: NDArray[np.uint8], columns: int, path: Path) -> None:
    """Writes [N, H, W, 3] uint8 tiles row by row as one PNG; N is a multiple of `columns`."""
    count, height, width, _ = tiles.shape
    rows = tiles.reshape(count // columns, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    Image.fromarray(rows.reshape(count // columns * height, columns * width, 3)).save(path)


def to_uint8(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """[B, 3, H, W] float in [-1, 1] as [B, H, W, 3] uint8."""
    scaled = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


@torch.inference_mode()
def save_reconstructions(vae: AutoencoderKL, corpus: Corpus, path: Path) -> None:
    """Twelve pairs: picture above, what is left of it below."""
    rows = corpus.draw(12, torch.Generator().manual_seed(1))
    pixels = to_tensor(corpus.pixels[rows]).to(vae.device)
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    save_grid(np.concatenate([to_uint8(pixels), to_uint8(decoded)]), 12, path)


@torch.inference_mode()
def sample(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    states: torch.Tensor,
    *,
    guidance: float = 4.0,
    steps: int = 25,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Pictures by caption, DDIM with classifier-free guidance.

    Args:
        states: [B + 1, T, 384] text states; row 0 is the empty caption.

    Returns:
        [B, 128, 128, 3] uint8 RGB.
    """
    scheduler = DDIMScheduler.from_config(new_scheduler().config)
    scheduler.set_timesteps(steps)
    count = len(states) - 1
    latents = torch.randn((count, 8, 16, 16), generator=torch.Generator().manual_seed(seed)).to(unet.device)
    both = torch.cat([states[:1].expand(count, -1, -1), states[1:]]).float().to(unet.device)
    for timestep in scheduler.timesteps:
        free, guided = unet(latents.repeat(2, 1, 1, 1), timestep, encoder_hidden_states=both).sample.chunk(2)
        latents = scheduler.step(free + guidance * (guided - free), timestep, latents).prev_sample
    return to_uint8(vae.decode(latents / float(vae.config["scaling_factor"])).sample)


def save_samples(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    states: torch.Tensor,
    captions: tuple[str, ...],
    index: NDArray[np.int64],
    path: Path,
) -> None:
    """Two rows of eight samples by caption, spread over the corpus."""
    rows = np.linspace(0, len(captions) - 1, 16).astype(int)
    chosen = torch.cat([states[:1], states[index[rows]]])
    save_grid(sample(vae, unet, chosen), 8, path)
    path.with_suffix(".txt").write_text("\n".join(captions[row] for row in rows) + "\n")
