"""`vermouth eval prior`: samples by name, and how many of them a classifier of real pictures recognises."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track

from models.bundle.build import load_extractor
from models.bundle.pack import prior_manifest
from training.commands.report import report
from training.data.dataset import DEFAULT_FOLDER, load_dataset
from training.evaluation import baselines

_BATCH = 32
_GRID = 64


def prior_command(
    bundle: Annotated[Path, typer.Option(help="Folder of vae/, unet/ and scheduler/.")] = Path("weights/mini"),
    data_set: Annotated[Path, typer.Option("--data-set", help="Folder of `vermouth data build`.")] = DEFAULT_FOLDER,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("docs/results"),
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 7.0,
    steps: Annotated[int, typer.Option(min=2, help="DDIM steps.")] = 30,
    threads: Annotated[int, typer.Option(help="Compute threads.")] = 2,
) -> None:
    """256 samples by name of seen classes, recognised among 100 names; a grid of 64 beside."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from models.text import load_minilm
    from training.evaluation import prior
    from training.prior.pictures import sample, save_grid

    torch.set_num_threads(threads)
    data = load_dataset(data_set)
    manifest = prior_manifest(bundle)
    extractor = load_extractor(bundle, manifest, device=torch.device("cpu"), dtype=torch.float32, taps=manifest.taps)
    vae = AutoencoderKL.from_pretrained(bundle / "vae", torch_dtype=torch.float32).eval()
    unet = UNet2DConditionModel.from_pretrained(bundle / "unet", torch_dtype=torch.float32).eval()
    asked = prior.question(data)
    text = load_minilm()
    parts = []
    for start in track(range(0, len(asked.captions), _BATCH), description="samples"):
        states = text.states(["", *asked.captions[start : start + _BATCH]])
        parts.append(sample(vae, unet, states, guidance=guidance, steps=steps, seed=start))
    samples = np.concatenate(parts)
    figures = prior.measure(data, asked, samples, baselines.expert_embedding(extractor))
    report("prior", [{"guidance": guidance, "steps": steps, **asdict(figures)}], [], out, prior=manifest)
    save_grid(samples[:_GRID], 16, out / "prior.png")
    (out / "prior.txt").write_text("\n".join(asked.captions[:_GRID]) + "\n")
