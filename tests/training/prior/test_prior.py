"""A few real steps of the autoencoder and of the U-Net, in the sizes that ship."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.dataset import DataSet
from training.loop import Schedule
from training.prior import unet as unet_stage
from training.prior import vae as vae_stage
from training.prior.corpus import load_corpus, to_tensor


def first_and_last_loss(folder: Path) -> tuple[float, float]:
    with (folder / "curve.csv").open(newline="") as file:
        rows = [sum(float(v) for k, v in row.items() if k not in ("step", "seconds")) for row in csv.DictReader(file)]
    return rows[0], rows[-1]


def test_the_autoencoder_learns_and_measures_its_scaling(
    dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_stage, "SCALING_IMAGES", 16)
    corpus = load_corpus(dataset)
    schedule = Schedule(steps=20, minutes=60, learning_rate=2e-3, warmup_steps=5, decay=False)
    vae = vae_stage.train_vae(corpus, schedule, folder=tmp_path, seed=0, progress=lambda _step, _loss: None, batch=4)
    first, last = first_and_last_loss(tmp_path)
    assert last < first
    with torch.inference_mode():
        latents = vae.encode(to_tensor(corpus.pixels)).latent_dist.mean
    assert latents.shape[1:] == (8, 16, 16)
    assert float(latents.std()) * float(vae.config["scaling_factor"]) == pytest.approx(1, rel=0.5)
    assert sum(p.numel() for p in vae.parameters()) < 3_000_000


def test_the_prior_learns_from_cached_latents(dataset: DataSet, tmp_path: Path) -> None:
    corpus = load_corpus(dataset)
    vae = vae_stage.new_vae().eval()
    latents = unet_stage.cache_latents(
        vae, corpus, tmp_path / "latents.npy", variants=2, progress=lambda _done, _loss: None
    )
    assert latents.shape == (2, len(corpus.pixels), 8, 16, 16)
    assert np.array_equal(
        latents,
        unet_stage.cache_latents(vae, corpus, tmp_path / "latents.npy", variants=2, progress=lambda _done, _loss: None),
    )
    states = torch.randn(2, 16, 384, generator=torch.Generator().manual_seed(0))
    schedule = Schedule(steps=20, minutes=60, learning_rate=1e-3, warmup_steps=5, decay=False)
    unet = unet_stage.train_unet(
        unet_stage.Denoising(latents, states, np.ones(len(corpus.pixels), dtype=np.int64), corpus),
        schedule,
        folder=tmp_path,
        seed=0,
        progress=lambda _step, _loss: None,
        batch=4,
    )
    first, last = first_and_last_loss(tmp_path)
    assert last < first
    assert sum(p.numel() for p in unet.parameters()) < 10_000_000


def test_nearly_clean_time_steps_weigh_little_and_the_mean_is_one() -> None:
    weights = unet_stage.snr_weights(unet_stage.new_scheduler())
    assert weights.mean() == pytest.approx(1)
    assert bool((weights.diff() >= -1e-6).all())
    assert weights[0] < 0.01 < weights[-1]
