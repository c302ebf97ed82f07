"""`vermouth eval all`: every protocol on a pair of bundles, as tables and figures in one folder."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from models.bundle.build import load_bundle
from training.commands.figures import fewshot_figures, retrieval_figures, segment_figures
from training.commands.protocols import fewshot_rows, retrieval_rows, robustness_rows, scene_tallies, segment_rows
from training.commands.report import report
from training.data.dataset import DEFAULT_FOLDER, load_dataset
from training.evaluation import fewshot, plots
from training.evaluation.cache import DEFAULT_CACHE, open_cache

_PAGE = """# Evaluation of the embedded default

{command}

{tables}
## Figures

{figures}
"""
_TABLES = ("retrieval", "fewshot", "segment", "robustness")
_FIGURES = {
    "precision-recall": "Interpolated precision over recall",
    "outline-zs-answers": "Outlines of unseen classes and their first ten answers",
    "drawing-zs-answers": "Drawings of unseen words and their first ten answers",
    "drawing-release-answers": "Validation drawings and their first ten answers",
    "drawing-zs-words-r10": "R@10 by unseen word",
    "drawing-zs-words-map": "mAP by unseen word",
    "drawing-release-words-r10": "R@10 by word",
    "drawing-release-words-map": "mAP by word",
    "fewshot-confusion": "Which unseen words are taken for which",
    "scenes-seen": "Scenes of seen names",
    "scenes-unseen": "Scenes of unseen names",
    "scenes-reliability": "Probabilities of masks against how often they are right",
    "robustness": "R@10 however it is drawn; the line is 0.05 below plain drawings",
}


def all_command(
    bundle: Annotated[
        list[Path], typer.Option("--bundle", help="Bundle with zero-shot heads; several are seeds of one recipe.")
    ] = [Path("weights/mini-zeroshot")],  # noqa: B006
    release_bundle: Annotated[
        list[Path], typer.Option("--release-bundle", help="Bundle with release heads; several are seeds.")
    ] = [Path("weights/mini")],  # noqa: B006
    data_set: Annotated[Path, typer.Option("--data-set", help="Folder of `vermouth data build`.")] = DEFAULT_FOLDER,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("docs/results"),
    cache: Annotated[Path, typer.Option(help="Folder of canonical pictures and features.")] = DEFAULT_CACHE,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes a pool.")] = 100,
    episodes: Annotated[int, typer.Option(min=2, help="Episodes a setting.")] = fewshot.EPISODES,
    threads: Annotated[int, typer.Option(help="Compute threads.")] = 2,
) -> None:
    """Every protocol: tables as Markdown and JSON, and figures of the first bundles given; all.md shows it all."""
    torch.set_num_threads(threads)
    data, kept = load_dataset(data_set), open_cache(data_set, cache)
    zero_shot = [load_bundle(folder, device="cpu") for folder in bundle]
    released = [load_bundle(folder, device="cpu") for folder in release_bundle]
    out.mkdir(parents=True, exist_ok=True)
    report("retrieval", retrieval_rows(data, zero_shot, released, kept), [*zero_shot, *released], out)
    retrieval_figures(data, zero_shot[0], released[0], kept, out)
    report("fewshot", fewshot_rows(data, zero_shot, episodes, kept), zero_shot, out)
    fewshot_figures(data, zero_shot[0], episodes, kept, out)
    tallies = [scene_tallies(data, each, scenes) for each in zero_shot]
    report("segment", segment_rows(zero_shot, tallies), zero_shot, out)
    segment_figures(data, zero_shot[0], {name: tally.calibration() for name, tally in tallies[0].items()}, out)
    rows = robustness_rows(data, released, kept)
    report("robustness", rows, released, out)
    drawn = {row["drawn"]: row["r_10"] for row in rows}
    plots.ways_bars(
        list(drawn), list(drawn.values()), least=drawn["plain"] - 0.05, title="R@10", file=out / "robustness.png"
    )
    write_page(out)


def write_page(out: Path) -> None:
    """Writes all.md: the tables and figures that the folder holds."""
    tables = "".join(f"## {name}\n\n{(out / f'{name}.md').read_text()}\n" for name in _TABLES)
    held = {name: caption for name, caption in _FIGURES.items() if (out / f"{name}.png").is_file()}
    figures = "\n\n".join(f"![{caption}]({name}.png)\n\n*{caption}*" for name, caption in held.items())
    command = "Written by `vermouth eval all`; figures show the first bundle of each kind."
    (out / "all.md").write_text(_PAGE.format(command=command, tables=tables, figures=figures))
