"""The autoencoder: images of 128 px to latents of 16×16.

It is trained on crops, since it is convolutional and a 64 px crop costs a quarter of the whole.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from training.devices import CPU, BatchLoss, half_on_gpu, to_input
from training.loop import Progress, Schedule, fit
from training.prior.corpus import Corpus, save_grid, to_tensor, to_uint8

SCALING_IMAGES = 256  # images that the scaling factor is measured on
LATENT_CHANNELS = 8
_TRIES = 4  # crops of an image, until one is not blank
_LEAST_DEVIATION = 4 / 127.5  # of a crop's pixels, below which it is blank


def new_vae() -> AutoencoderKL:
    """The mini bundle's autoencoder, freshly initialized: f8, eight latent channels (docs/adr/0011)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=1.0,
    )


def train_vae(
    corpus: Corpus,
    schedule: Schedule,
    *,
    folder: Path,
    seed: int,
    progress: Progress,
    device: torch.device = CPU,
    batch: int = 32,
    crop: int = 64,
) -> AutoencoderKL:
    """Train, or continue to train.

    Args:
        batch: crops a step.
        crop: their side, px; a multiple of 8, at most 128.

    Returns:
        The autoencoder on `device`, with averaged weights and a measured scaling factor.
    """
    torch.manual_seed(seed)
    vae = new_vae().to(device).to(memory_format=torch.channels_last)
    images = torch.from_numpy(corpus.pixels).to(device)

    def draw(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        rows = torch.from_numpy(corpus.draw(batch, generator))
        noise = torch.randn((batch, LATENT_CHANNELS, crop // 8, crop // 8), generator=generator)
        return _crops(images, rows, crop, generator), noise.to(device)

    def losses(pixels: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        # The noise is an argument: a random call inside a CUDA graph would repeat itself.
        with half_on_gpu(device):
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        return {
            "l1": F.l1_loss(decoded, pixels),
            "colour": 4 * _colour_loss(decoded, pixels),  # squared errors are small beside L1
            "edges": 0.5 * _edge_loss(decoded, pixels),
            "kl": 1e-6 * posterior.kl().float().mean(),  # as Stable Diffusion's autoencoder: hardly any prior
        }

    loss = BatchLoss(draw=draw, losses=losses)
    averaged = fit(vae, loss, schedule, folder=folder, seed=seed, progress=progress)
    vae.load_state_dict(averaged)
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=_scaling_factor(vae, corpus, seed))
    return vae


def _crops(images: torch.Tensor, rows: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """[B, 3, side, side] crops of `rows` that are not blank, half of them mirrored, colours sometimes inverted."""
    device, count = images.device, len(rows)
    corners = torch.randint(0, images.shape[1] - side + 1, (2, _TRIES * count), generator=generator).to(device)
    tops, lefts = corners[:, :, None] + torch.arange(side, device=device)
    tried = images[rows.to(device).repeat(_TRIES)[:, None, None], tops[:, :, None], lefts[:, None]]
    crops = to_input(tried)
    is_filled = (crops.flatten(1).std(dim=1) > _LEAST_DEVIATION).view(_TRIES, count)
    first = is_filled.float().argmax(dim=0)  # the first try if all are blank
    chosen = crops[first * count + torch.arange(count, device=device)]
    mirror, invert = torch.rand((2, count, 1, 1, 1), generator=generator).to(device)
    chosen = torch.where(mirror < 0.5, chosen.flip(-1), chosen)
    return torch.where(invert < 0.05, -chosen, chosen).contiguous(memory_format=torch.channels_last)


def _colour_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Squared error of brightness and of the two opponent colours.

    With L1 over RGB alone, brightness dominates the error and reconstructions stay grey for thousands of steps.
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
    """1 / standard deviation of latents, as Stable Diffusion scales its own (Rombach et al. 2022, appendix G)."""
    rows = corpus.draw(SCALING_IMAGES, torch.Generator().manual_seed(seed))
    means = [
        vae.encode(to_tensor(corpus.pixels[part]).to(vae.device)).latent_dist.mean
        for part in np.array_split(rows, max(1, SCALING_IMAGES // 16))
    ]
    return round(1 / float(torch.cat(means).std()), 5)


@torch.inference_mode()
def save_reconstructions(vae: AutoencoderKL, corpus: Corpus, path: Path) -> None:
    """Write twelve pairs as a PNG: the image above, its reconstruction below."""
    rows = corpus.draw(12, torch.Generator().manual_seed(1))
    pixels = to_tensor(corpus.pixels[rows]).to(vae.device)
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    save_grid(np.concatenate([to_uint8(pixels), to_uint8(decoded)]), 12, path)
