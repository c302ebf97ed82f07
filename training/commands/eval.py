"""`vermouth eval`: the protocols of the embedded default, on the encoder that serves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from models.bundle.build import LoadedBundle, load_bundle
from training.commands.ablation import ablation_command
from training.commands.invariance import invariance_command
from training.commands.pictures import pictures_command
from training.commands.prior import prior_command
from training.commands.protocols import fewshot_rows, retrieval_rows, robustness_rows, scene_tallies, segment_rows
from training.commands.report import report
from training.commands.results import all_command
from training.data.dataset import DEFAULT_FOLDER, load_dataset
from training.evaluation import fewshot
from training.evaluation.cache import DEFAULT_CACHE, open_cache

eval_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure a bundle by protocol.")
eval_app.command("ablation")(ablation_command)
eval_app.command("pictures")(pictures_command)
eval_app.command("invariance")(invariance_command)
eval_app.command("prior")(prior_command)
eval_app.command("all")(all_command)

ZeroShotOption = Annotated[
    list[Path], typer.Option("--bundle", help="Bundle with zero-shot heads; several are seeds of one recipe.")
]
ReleaseOption = Annotated[
    list[Path], typer.Option("--release-bundle", help="Bundle with release heads; several are seeds of one recipe.")
]
DataSetOption = Annotated[Path, typer.Option("--data-set", help="Folder written by `vermouth data build`.")]
OutOption = Annotated[Path, typer.Option(help="Folder of the JSON and Markdown.")]
CacheOption = Annotated[Path, typer.Option(help="Folder of canonical pictures and features, each computed once.")]
ThreadsOption = Annotated[int, typer.Option(help="Compute threads.")]
DtypeOption = Annotated[str, typer.Option(help="Precision, as `VERMOUTH_DTYPE`.")]

ZERO_SHOT = [Path("weights/mini-zeroshot")]
RELEASE = [Path("weights/mini")]
OUT = Path("docs/results")


@eval_app.command("retrieval")
def retrieval_command(
    bundle: ZeroShotOption = ZERO_SHOT,
    release_bundle: ReleaseOption = RELEASE,
    data_set: DataSetOption = DEFAULT_FOLDER,
    out: OutOption = OUT,
    cache: CacheOption = DEFAULT_CACHE,
    threads: ThreadsOption = 2,
    dtype: DtypeOption = "auto",
) -> None:
    """outline-zs, drawing-zs and drawing-release, beside HOG and the expert without training."""
    torch.set_num_threads(threads)
    zero_shot, released = _loaded(bundle, dtype), _loaded(release_bundle, dtype)
    rows = retrieval_rows(load_dataset(data_set), zero_shot, released, open_cache(data_set, cache))
    report("retrieval", rows, [*zero_shot, *released], out)


@eval_app.command("fewshot")
def fewshot_command(
    bundle: ZeroShotOption = ZERO_SHOT,
    data_set: DataSetOption = DEFAULT_FOLDER,
    out: OutOption = OUT,
    cache: CacheOption = DEFAULT_CACHE,
    episodes: Annotated[int, typer.Option(help="Episodes a setting.")] = fewshot.EPISODES,
    threads: ThreadsOption = 2,
    dtype: DtypeOption = "auto",
) -> None:
    """fewshot-vendors and fewshot-drawings, beside HOG and the expert without training."""
    torch.set_num_threads(threads)
    bundles = _loaded(bundle, dtype)
    report(
        "fewshot",
        fewshot_rows(load_dataset(data_set), bundles, episodes, open_cache(data_set, cache)),
        bundles,
        out,
    )


@eval_app.command("segment")
def segment_command(
    bundle: ZeroShotOption = ZERO_SHOT,
    data_set: DataSetOption = DEFAULT_FOLDER,
    out: OutOption = OUT,
    scenes: Annotated[int, typer.Option(help="Scenes a pool.")] = 100,
    threads: ThreadsOption = 2,
    dtype: DtypeOption = "auto",
) -> None:
    """scenes: seen names in the style kept out, and unseen names."""
    torch.set_num_threads(threads)
    bundles = _loaded(bundle, dtype)
    data = load_dataset(data_set)
    tallies = [scene_tallies(data, each, scenes) for each in bundles]
    report("segment", segment_rows(bundles, tallies), bundles, out)


@eval_app.command("robustness")
def robustness_command(
    bundle: Annotated[
        list[Path], typer.Option(help="Bundle with release heads; several are seeds of one recipe.")
    ] = RELEASE,
    data_set: DataSetOption = DEFAULT_FOLDER,
    out: OutOption = OUT,
    cache: CacheOption = DEFAULT_CACHE,
    threads: ThreadsOption = 2,
    dtype: DtypeOption = "auto",
) -> None:
    """R@10 of drawing-release by the way the drawing was made, and the difference to plain ones."""
    torch.set_num_threads(threads)
    released = _loaded(bundle, dtype)
    rows = robustness_rows(load_dataset(data_set), released, open_cache(data_set, cache))
    report("robustness", rows, released, out)


def _loaded(folders: Sequence[Path], dtype: str) -> list[LoadedBundle]:
    return [load_bundle(folder, device="cpu", dtype=dtype) for folder in folders]
