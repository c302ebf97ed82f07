"""`vermouth data` and `vermouth train`: the data set, and the stages of the embedded default's training.

A stage continues from its last checkpoint. Modules are imported inside the commands, so that help stays quick.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.data.build import build, fetch_packages
from training.data.dataset import DEFAULT_FOLDER, load_dataset
from training.devices import device_named, use_fast_products
from training.loop import Schedule

data_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Build the data set the embedded default is trained on."
)
train_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train the embedded default, stage by stage.")

RUNS = Path("~/.cache/vermouth/runs")
MINI = Path("weights/mini")
SINGLE = 10  # photographs of a name whose cells the dense stage does not know

DataSetOption = Annotated[Path, typer.Option("--data-set", help="Folder written by `vermouth data build`.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of checkpoints, curves and caches.")]
MinutesOption = Annotated[float, typer.Option(help="Wall-clock budget; the next call continues from there.")]
SeedOption = Annotated[int, typer.Option(help="Seed of initialization, batches and augmentation.")]
ThreadsOption = Annotated[int, typer.Option(help="Compute threads.")]
StepsOption = Annotated[int, typer.Option(help="Steps in all, earlier calls included.")]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]
SharedOption = Annotated[
    Path, typer.Option("--data", help="Folder of photographs, sketches, drawings, splits and concepts.")
]
RoundsOption = Annotated[int, typer.Option(min=1, help="How often everything that heads see is redrawn.")]


@data_app.callback()
def data() -> None:
    """Keeps `build` a sub-command while it is the only one."""


@data_app.command("build")
def build_command(
    out: Annotated[Path, typer.Option(help="Target folder.")] = DEFAULT_FOLDER,
    drawings: Annotated[Path, typer.Option(help="Folder of drawings, splits and concepts.")] = Path("../shared/data"),
    packages: Annotated[Path | None, typer.Option(help="An existing node_modules folder.")] = None,
) -> None:
    """Fetch the allowed packages, render them at 128 px and write one compact data set."""
    console = Console(stderr=True)
    out = out.expanduser()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with console.status("fetching packages"):
        found = fetch_packages(out.parent / "packages", npm=packages)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("rendering", total=None)
        counts = build(found, drawings, out, lambda done, total: bar.update(task, completed=done, total=total))
    for source, count in counts.items():
        console.print(f"{source:18} {count:6}")


@contextmanager
def _stage(name: str, total: int, threads: int) -> Iterator[Callable[[int, float], None]]:
    torch.set_num_threads(threads)
    use_fast_products()
    counts = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"), TimeElapsedColumn())
    with Progress(TextColumn(name), *counts, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, loss="")
        yield lambda step, loss: bar.update(task, completed=step, loss=f"loss {loss:.4f}")


@train_app.command("vae")
def train_vae_command(
    data_set: DataSetOption = DEFAULT_FOLDER,
    runs: RunsOption = RUNS,
    minutes: MinutesOption = 25.0,
    steps: StepsOption = 20_000,
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="Crops a step.")] = 32,
    crop: Annotated[int, typer.Option(min=32, max=128, help="Side of a crop, px.")] = 64,
) -> None:
    """Train the autoencoder on seen images, outlines, icons and drawings."""
    from training.prior.corpus import load_corpus
    from training.prior.vae import save_reconstructions, train_vae

    folder = runs.expanduser() / "vae"
    schedule = Schedule(steps=steps, minutes=minutes, learning_rate=2e-3)
    with _stage("vae", steps, threads) as progress:
        corpus = load_corpus(load_dataset(data_set))
        computes = device_named(device)
        vae = train_vae(
            corpus, schedule, folder=folder, seed=seed, progress=progress, device=computes, batch=batch, crop=crop
        )
        save_reconstructions(vae, corpus, folder / "reconstructions.png")
        vae.save_pretrained(folder / "export")  # read by `train unet` and `train export`


@train_app.command("unet")
def train_unet_command(
    data_set: DataSetOption = DEFAULT_FOLDER,
    runs: RunsOption = RUNS,
    minutes: MinutesOption = 30.0,
    steps: StepsOption = 5_000,
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="Latents a step.")] = 64,
    variants: Annotated[int, typer.Option(min=1, help="Latents an image: mirrored, shrunk.")] = 2,
) -> None:
    """Train the prior on cached latents and text states."""
    from diffusers import AutoencoderKL

    from models.bundle.files import sha256
    from models.bundle.pack import WEIGHTS
    from training.prior.corpus import cache_states, load_corpus
    from training.prior.unet import Denoising, cache_latents, finished, new_scheduler, save_samples, train_unet

    folder = runs.expanduser() / "unet"
    folder.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(steps=steps, minutes=minutes, learning_rate=8e-4)
    with _stage("unet", steps, threads) as progress:
        computes = device_named(device)
        corpus = load_corpus(load_dataset(data_set))
        encoder = finished(runs.expanduser(), "vae")
        vae = AutoencoderKL.from_pretrained(encoder).eval().to(computes)
        # An autoencoder that was trained further needs new latents.
        cached = folder / f"latents-{sha256(encoder / WEIGHTS)[:8]}.npy"
        latents = cache_latents(vae, corpus, cached, variants=variants, progress=progress)
        states, index = cache_states(corpus.captions, folder / "states.pt", computes)
        denoising = Denoising(latents, states, index, corpus, device=computes)
        unet = train_unet(denoising, schedule, folder=folder, seed=seed, progress=progress, batch=batch)
        unet.save_pretrained(folder / "export")
        new_scheduler().save_pretrained(folder / "scheduler")
        samples = folder / "samples.png"
        save_samples(vae, unet, states=states, captions=corpus.captions, index=index, path=samples)


@train_app.command("export")
def export_command(
    runs: RunsOption = RUNS,
    out: Annotated[Path, typer.Option(help="Bundle folder that receives vae/, unet/ and scheduler/.")] = MINI,
) -> None:
    """Write the trained prior into a bundle's folders, in half precision."""
    from training.prior.unet import export_prior

    with _stage("export", 1, threads=1) as progress:
        counts = export_prior(runs.expanduser(), out)
        progress(1, 0.0)
    for name, count in counts.items():
        Console(stderr=True).print(f"{name:5} {count / 1e6:6.2f} M parameters")


@train_app.command("views")
def train_views_command(
    data_set: DataSetOption = DEFAULT_FOLDER,
    runs: RunsOption = RUNS,
    seed: SeedOption = 0,
    rounds: RoundsOption = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Draw everything that heads are trained on; it needs no prior, so it can run during the prior's training."""
    from training.heads.frozen import head_images

    with _stage("views", 0, threads=1) as progress:  # 0: how many views there are shows only at the end
        folder = runs.expanduser() / "heads"
        head_images(load_dataset(data_set), folder, seed=seed, rounds=rounds, workers=workers, progress=progress)


@train_app.command("photographs")
def train_photographs_command(
    bundle: Annotated[Path, typer.Argument(help="Where heads/ go.")],
    release: Annotated[bool, typer.Option(help="Train on unseen classes, words and photographs too.")] = False,
    features: Annotated[
        Literal["fused", "expert"], typer.Option(help="Frozen maps that heads see; `expert` leaves the U-Net out.")
    ] = "fused",
    start: Annotated[
        Path, typer.Option(help="Bundle whose heads training starts from; zero-shot heads need a zero-shot one.")
    ] = MINI,
    prior: Annotated[Path, typer.Option(help="Folder of vae/, unet/ and scheduler/.")] = MINI,
    data: SharedOption = Path("../shared/data"),
    data_set: DataSetOption = DEFAULT_FOLDER,
    runs: RunsOption = RUNS,
    minutes: Annotated[float, typer.Option(help="Wall-clock budget of each stage.")] = 60.0,
    steps: Annotated[int, typer.Option(help="Steps of the pooled stage in all; 0 for the recipe's own.")] = 0,
    dense_steps: Annotated[int, typer.Option(help="Steps of the dense stage in all; 0 for none.")] = 3000,
    scenes: Annotated[int, typer.Option(help="Composed scenes of the dense stage.")] = 4000,
    shares: Annotated[int, typer.Option(min=1, max=64, help="Of 64 shares of everything, for a quicker run.")] = 64,
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
) -> None:
    """Train heads on photographs, sketches and emoji together, at 224 px and with class posteriors."""
    from models.bundle.pack import PHOTOGRAPH_SIDE
    from models.text import load_minilm
    from training.data.clothing import load_clothing
    from training.data.dataset import load_splits
    from training.data.photographs import load_photographs, load_sketches, unseen_of
    from training.heads.caches import FrozenCaches
    from training.heads.frozen import photograph_features, with_scenes
    from training.heads.photograph_recipe import PHOTOGRAPHS, train_photograph_heads
    from training.heads.photograph_scenes import clothing_views, named_views
    from training.heads.recipe import HeadPlan

    root, images = runs.expanduser() / "heads", load_dataset(data_set)
    unseen = unseen_of(load_splits(data), images)
    photographs = load_photographs(data, unseen)
    with _stage("frozen maps", 0, threads) as progress:
        caches = FrozenCaches(prior, root, side=PHOTOGRAPH_SIDE, device=device_named(device), progress=progress)
        sketches = load_sketches(data)
        found = photograph_features(images, photographs, sketches, caches, shares=shares, with_taps=features == "fused")
        if dense_steps:
            embed = load_minilm().embeddings
            others = {
                "clothing-tiled": clothing_views(load_clothing(data, is_validation=False), PHOTOGRAPH_SIDE, unseen),
                f"single-{SINGLE}": named_views(photographs, PHOTOGRAPH_SIDE, embed, each=SINGLE),
            }
            found = with_scenes(found, images, caches, photographs=photographs, others=others, scenes=scenes)
    plan = HeadPlan(
        release=release, features=features, steps=steps, dense_steps=dense_steps, minutes=minutes, seed=seed
    )
    with _stage("heads", (steps or PHOTOGRAPHS.steps) + dense_steps, threads) as progress:
        train_photograph_heads(bundle, found, plan, root, progress, start=start / "heads")


@train_app.command("heads")
def train_heads_command(
    bundle: Annotated[Path, typer.Argument(help="Where heads/ go: weights/mini or weights/mini-zeroshot.")],
    release: Annotated[bool, typer.Option(help="Train on unseen classes and words too.")] = False,
    finish: Annotated[
        bool,
        typer.Option(
            help="Continue from this bundle's release heads: the pooled stage alone, with next to no dropout."
        ),
    ] = False,
    adapt: Annotated[bool, typer.Option(help="Let the expert learn too, by low-rank adapters.")] = False,
    features: Annotated[
        Literal["fused", "expert", "diffusion"], typer.Option(help="Frozen maps that heads see; others are zero.")
    ] = "fused",
    prior: Annotated[Path, typer.Option(help="Folder of vae/, unet/ and scheduler/.")] = MINI,
    data_set: DataSetOption = DEFAULT_FOLDER,
    runs: RunsOption = RUNS,
    minutes: Annotated[float, typer.Option(help="Wall-clock budget of each stage.")] = 60.0,
    steps: Annotated[
        int, typer.Option(help="Steps of the pooled stage in all; default 350, 1200 with --release, 900 with --finish.")
    ] = 0,
    dense_steps: Annotated[int, typer.Option(help="Steps of the dense stage in all.")] = 2400,
    seed: SeedOption = 0,
    rounds: RoundsOption = 1,
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
) -> None:
    """Train both heads: zero-shot heads, or release heads with --release; with --adapt the expert learns too."""
    from training.heads.frozen import frozen_features
    from training.heads.recipe import HeadPlan, train_heads

    with _stage("frozen maps", 0, threads) as progress:
        root, computes, data = runs.expanduser() / "heads", device_named(device), load_dataset(data_set)
        maps = frozen_features(data, prior, root, rounds=rounds, device=computes, with_pixels=adapt, progress=progress)
    plan = HeadPlan(
        release=release,
        finish=finish,
        adapt=adapt,
        features=features,
        steps=steps,
        dense_steps=dense_steps,
        minutes=minutes,
        seed=seed,
    )
    with _stage("heads", plan.pooled_steps + plan.dense_steps_taken, threads) as progress:
        train_heads(bundle, maps, plan, root, progress)
