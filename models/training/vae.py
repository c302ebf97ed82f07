"""The autoencoder: pictures of 128 px to latents of 16×16.

Trained on crops, since it is convolutional: a 64 px crop costs a quarter of the whole.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from models.training.corpus import Corpus, to_tensor
from models.training.loop import Schedule, fit

BATCH = 32
CROP = 64
SCALING_PICTURES = 256


def new_vae() -> AutoencoderKL:
    """The mini bundle's autoencoder, freshly initialised: f8, eight latent channels (docs/adr/0011)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=1.0,
    )


def train_vae(
    corpus: Corpus, schedule: Schedule, *, folder: Path, seed: int, progress: Callable[[int, float], None]
) -> AutoencoderKL:
    """Trains or goes on training; returns the autoencoder with averaged weights and a measured scaling factor."""
    torch.manual_seed(seed)
    vae = new_vae().to(memory_format=torch.channels_last)

    def loss(generator: torch.Generator) -> dict[str, torch.Tensor]:
        pixels = _crops(corpus, generator)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        return {
            "l1": F.l1_loss(decoded, pixels),
            "colour": 4 * _colour_loss(decoded, pixels),
            "edges": 0.5 * _edge_loss(decoded, pixels),
            "kl": 1e-6 * posterior.kl().mean(),
        }

    averaged = fit(vae, loss, schedule, folder=folder, seed=seed, progress=progress)
    vae.load_state_dict(averaged)
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=_scaling_factor(vae, corpus, seed))
    return vae


def _crops(corpus: Corpus, generator: torch.Generator) -> torch.Tensor:
    """[B, 3, CROP, CROP] float32: crops that hold something, some mirrored, colours sometimes inverted."""
    rows = corpus.draw(BATCH, generator)
    crops = []
    for row in rows:
        picture = corpus.pixels[row]
        for _ in range(4):
            top, left = (int(v) for v in torch.randint(0, picture.shape[0] - CROP + 1, (2,), generator=generator))
            crop = picture[top : top + CROP, left : left + CROP]
            if crop.std() > 4:
                break
        mirror, invert = torch.rand(2, generator=generator).tolist()
        crop = crop[:, ::-1] if mirror < 0.5 else crop
        crops.append(255 - crop if invert < 0.05 else crop)
    return to_tensor(np.stack(crops)).contiguous(memory_format=torch.channels_last)


def _colour_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Squared error of brightness and of the two opponent colours.

    By L1 over RGB alone, brightness is so much of the error that reconstructions stay grey for thousands of steps.
    """
    error = decoded - pixels
    red, green, blue = error.unbind(dim=1)
    opponents = (red - green).square() + (blue - (red + green) / 2).square()
    return 0.5 * error.mean(dim=1).square().mean() + opponents.mean()


def _edge_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """L1 of horizontal and vertical differences: thin strokes weigh more than flat areas."""
    across = F.l1_loss(decoded.diff(dim=-1), pixels.diff(dim=-1))
    down = F.l1_loss(decoded.diff(dim=-2), pixels.diff(dim=-2))
    return across + down


@torch.inference_mode()
def _scaling_factor(vae: AutoencoderKL, corpus: Corpus, seed: int) -> float:
    """1 / standard deviation of latents."""
    rows = corpus.draw(SCALING_PICTURES, torch.Generator().manual_seed(seed))
    means = [
        vae.encode(to_tensor(corpus.pixels[part])).latent_dist.mean
        for part in np.array_split(rows, max(1, SCALING_PICTURES // 16))
    ]
    return round(1 / float(torch.cat(means).std()), 5)
