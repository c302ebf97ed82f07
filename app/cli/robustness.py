"""`vermouth eval robustness`: the drawings of drawing-release, sent as rasters of many kinds."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from app.cli.embedding import trained
from app.cli.report import Row, report
from models.build import load_bundle
from models.data.dataset import DEFAULT_FOLDER, load_dataset
from models.evaluation import retrieval, robustness
from models.evaluation.cache import DEFAULT_CACHE, open_cache


def robustness_command(
    bundle: Annotated[Path, typer.Option(help="Bundle with release heads.")] = Path("weights/mini"),
    data_set: Annotated[Path, typer.Option("--data-set", help="Folder of `vermouth data build`.")] = DEFAULT_FOLDER,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("docs/results"),
    cache: Annotated[Path, typer.Option(help="Folder of canonical pictures and features.")] = DEFAULT_CACHE,
    threads: Annotated[int, typer.Option(help="Compute threads.")] = 2,
) -> None:
    """R@10 of drawing-release by the way the drawing was made, and the difference to plain ones."""
    torch.set_num_threads(threads)
    data = load_dataset(data_set)
    loaded = load_bundle(bundle, device="cpu")
    kept = open_cache(data_set, cache)
    protocol = retrieval.drawing_release(data, kept.pictures)
    embed = trained(loaded, kept, "retrieval", "release").embed
    gallery = embed(protocol.gallery)
    drawings = [drawing for drawing in data.drawings if drawing.hexcodes and drawing.validation]
    rows: list[Row] = []
    for name, draw in robustness.variants().items():
        queries = kept.canonical(partial(robustness.rasters, drawings, draw), f"{robustness.VERSION} {name}")
        figures = retrieval.figures(protocol, embed(queries) @ gallery.T)
        measured = dataclasses.asdict(figures)
        plain = rows[0]["r_10"] if rows else measured["r_10"]
        rows.append({"drawn": name, **measured, "r_10 less plain": measured["r_10"] - plain})
    report("robustness", rows, [loaded], out)
