"""The prior: a small text-conditioned U-Net that predicts the noise in cached latents; its samples and its export."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from models.backbone import add_noise
from models.bundle.pack import WEIGHTS
from models.errors import DataError
from training.devices import CPU, BatchLoss, batch_size, half_on_gpu, randn
from training.loop import Progress, Schedule, fit
from training.prior.corpus import Corpus, save_grid, to_tensor, to_uint8

EMPTY_CAPTION_SHARE = 0.25  # for classifier-free guidance (Ho and Salimans 2022); serving uses the empty caption too
SNR_CAP = 5.0  # γ of min-SNR (Hang et al. 2023)
VARIANTS = 2  # latents an image: as it is, mirrored; further ones are shrunk and moved
_LATENT_SHAPE = (8, 16, 16)  # docs/adr/0011


def new_unet() -> UNet2DConditionModel:
    """The mini bundle's U-Net, freshly initialized: four levels on 16×16 latents, cross-attention 384."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        cross_attention_dim=384,
        attention_head_dim=8,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def new_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise schedule: scaled linear, 1000 steps, epsilon prediction."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
    )


def snr_weights(scheduler: DDPMScheduler) -> torch.Tensor:
    """[1000] weights of the noise-prediction loss, min-SNR-5 (Hang et al. 2023), with mean 1.

    Without them the many nearly clean time steps, which say little about what is depicted, dominate a short training.
    """
    alphas: torch.Tensor = scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = snr.clamp(max=SNR_CAP) / snr
    return weights / weights.mean()


@torch.inference_mode()
def cache_latents(
    vae: AutoencoderKL, corpus: Corpus, path: Path, *, variants: int = VARIANTS, progress: Progress
) -> NDArray[np.float16]:
    """Scaled latents of every image: as it is, mirrored, then shrunk off-centre and mirrored every other time.

    Args:
        vae: on the device that encodes.
        corpus: N images.
        path: cache, reused if it is complete and of this size.
        variants: number of latents an image.
        progress: called with (images done, 0).

    Returns:
        [variants, N, 8, 16, 16] float16, memory-mapped from `path`.
    """
    count, scaling = len(corpus.pixels), float(vae.config["scaling_factor"])
    if path.is_file() and (cached := np.load(path, mmap_mode="r")).shape[:2] == (variants, count):
        return np.asarray(cached)
    # Small batches, channels last and bfloat16 are three times as fast on a CPU; latents differ by 0.4 %.
    fast = copy.deepcopy(vae).to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    size = batch_size(vae.device, cpu=16, gpu=128)
    part = path.with_suffix(".part.npy")
    latents = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=(variants, count, *_LATENT_SHAPE))
    for start in range(0, count, size):
        pixels = to_tensor(corpus.pixels[start : start + size]).to(vae.device)
        for index in range(variants):
            shown = pixels if index < 2 else _shrink(pixels, [start, index])
            variant = shown.flip(-1) if index % 2 else shown
            batch = variant.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
            means = fast.encode(batch).latent_dist.mean.float() * scaling  # as serving: the mean, without noise
            latents[index, start : start + size] = means.half().cpu().numpy()
        progress(min(start + size, count), 0.0)
    latents.flush()
    part.rename(path)  # a file of the final name is complete
    return np.asarray(np.load(path, mmap_mode="r"))


def _shrink(pixels: torch.Tensor, seed: list[int]) -> torch.Tensor:
    """[B, 3, H, W] at 80 % on white, somewhere in the frame."""
    side = pixels.shape[-1]
    small = F.interpolate(pixels, scale_factor=0.8, mode="bilinear", antialias=True)
    room = side - small.shape[-1]
    left, top = (int(v) for v in np.random.default_rng(seed).integers(0, room + 1, 2))
    return F.pad(small, (left, room - left, top, room - top), value=1.0)


class Denoising:
    """The prior's loss: predict the noise in latents, with some captions dropped.

    Args:
        latents: [variants, N, 8, 16, 16] scaled latents.
        states: [S, T, 384] text states of distinct captions; row 0 is the empty caption.
        caption_index: [N] row of `states` of each image.
        corpus: the N images.
        device: that trains; everything is copied to it.
    """

    def __init__(
        self,
        latents: NDArray[np.float16],
        states: torch.Tensor,
        caption_index: NDArray[np.int64],
        corpus: Corpus,
        *,
        device: torch.device = CPU,
    ) -> None:
        scheduler = new_scheduler()
        self.device = device
        self._latents = torch.from_numpy(np.array(latents)).to(device)
        self._states = states.to(device)
        self._caption_index = torch.from_numpy(caption_index)
        self._corpus = corpus
        self._alphas = scheduler.alphas_cumprod.to(device)
        self._weights = snr_weights(scheduler).to(device)

    def loss(self, unet: UNet2DConditionModel, count: int) -> BatchLoss:
        """Weighted mean square error of `count` images a step, one scalar `mse`."""

        def draw(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
            rows = torch.from_numpy(self._corpus.draw(count, generator))
            variants = torch.randint(0, len(self._latents), (count,), generator=generator)
            captions = self._caption_index[rows]
            captions[torch.rand(count, generator=generator) < EMPTY_CAPTION_SHARE] = 0  # row of the empty caption
            timesteps = torch.randint(0, 1000, (count,), generator=generator)
            noise = randn((count, *_LATENT_SHAPE), generator, self.device)
            return *(numbers.to(self.device) for numbers in (rows, variants, captions, timesteps)), noise

        def losses(
            rows: torch.Tensor,
            variants: torch.Tensor,
            captions: torch.Tensor,
            timesteps: torch.Tensor,
            noise: torch.Tensor,
        ) -> dict[str, torch.Tensor]:
            clean = self._latents[variants, rows].float()
            noisy = add_noise(clean, noise, timesteps, self._alphas).contiguous(memory_format=torch.channels_last)
            with half_on_gpu(self.device):
                predicted = unet(noisy, timesteps, encoder_hidden_states=self._states[captions].float()).sample
            error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
            return {"mse": (self._weights[timesteps] * error).mean()}

        return BatchLoss(draw=draw, losses=losses)


def train_unet(
    denoising: Denoising, schedule: Schedule, *, folder: Path, seed: int, progress: Progress, batch: int = 64
) -> UNet2DConditionModel:
    """Train, or continue to train, on the loss's device, with `batch` latents a step.

    Returns the U-Net with averaged weights, in eval mode.
    """
    torch.manual_seed(seed)
    # Channels last: a step takes a quarter less time on a CPU.
    unet = new_unet().to(denoising.device).to(memory_format=torch.channels_last)
    averaged = fit(unet, denoising.loss(unet, batch), schedule, folder=folder, seed=seed, progress=progress)
    unet.load_state_dict(averaged)
    return unet.eval().requires_grad_(False)


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
    """Images by caption, DDIM with classifier-free guidance: [B, 128, 128, 3] uint8 RGB.

    `states` are [B + 1, T, 384] text states; row 0 is the empty caption.
    """
    scheduler = DDIMScheduler.from_config(new_scheduler().config)
    scheduler.set_timesteps(steps)
    count = len(states) - 1
    latents = torch.randn((count, *_LATENT_SHAPE), generator=torch.Generator().manual_seed(seed)).to(unet.device)
    both = torch.cat([states[:1].expand(count, -1, -1), states[1:]]).float().to(unet.device)
    for timestep in scheduler.timesteps:
        free, guided = unet(latents.repeat(2, 1, 1, 1), timestep, encoder_hidden_states=both).sample.chunk(2)
        latents = scheduler.step(free + guidance * (guided - free), timestep, latents).prev_sample
    return to_uint8(vae.decode(latents / float(vae.config["scaling_factor"])).sample)


def save_samples(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    *,
    states: torch.Tensor,
    captions: tuple[str, ...],
    index: NDArray[np.int64],
    path: Path,
) -> None:
    """Write two rows of eight samples as a PNG, and their captions beside it, spread over the corpus."""
    rows = np.linspace(0, len(captions) - 1, 16).astype(int)
    chosen = torch.cat([states[:1], states[index[rows]]])
    save_grid(sample(vae, unet, chosen), 8, path)
    path.with_suffix(".txt").write_text("\n".join(captions[row] for row in rows) + "\n")


def export_prior(runs: Path, target: Path) -> dict[str, int]:
    """Write vae/, unet/ and scheduler/ of a bundle from the exports of finished `runs`.

    Returns the number of parameters by component.

    Raises:
        DataError: a run has not finished.
    """
    vae = AutoencoderKL.from_pretrained(finished(runs, "vae"))
    unet = UNet2DConditionModel.from_pretrained(finished(runs, "unet"))
    counts = {"vae": write_component(vae, target / "vae"), "unet": write_component(unet, target / "unet")}
    new_scheduler().save_pretrained(target / "scheduler")
    return counts


def finished(runs: Path, stage: str) -> Path:
    """The folder of a stage's trained model.

    Raises:
        DataError: the stage has not finished.
    """
    folder = runs / stage / "export"
    if not (folder / "config.json").is_file():
        raise DataError(f"no {stage} in {runs / stage}: run `vermouth train {stage}`")
    return folder


def write_component(module: Any, folder: Path) -> int:
    """Write a diffusers model as config.json and float16 weights; returns its number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    # diffusers records the path on this machine that the model was loaded from.
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
        # float16 ends at 65,504: a larger weight becomes infinite.
        half = tensor.half() if tensor.is_floating_point() else tensor
        if not bool(torch.isfinite(half).all()):
            raise DataError(f"{name} is not finite in half precision")
        state[name] = half.contiguous()
    return state
