"""Figures beside the tables of `vermouth eval all`: plots, contact sheets and overlays, one PNG each."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from models.bundle.build import LoadedBundle
from training.commands.images import RIGHT, WRONG, Cell, below, grid, png, scene_row
from training.commands.reports import Row
from training.commands.tables import forms, scene_pools, side_of
from training.data.dataset import DataSet
from training.data.scenes import compose_evaluation_scene
from training.evaluation import fewshot, retrieval
from training.evaluation.features import EvaluationCache, trained, untrained_of
from training.evaluation.metrics import (
    Calibration,
    Floats,
    average_precision,
    group_means,
    hit_at,
    precision_recall,
    ranked_relevance,
)
from training.evaluation.segmentation import SceneTally, segmenter

SHOWN_WORDS, SHOWN_SCENES = 10, 3
FIRST = 10  # answers shown, and the k of R@k
_DPI = 90
_MOST_BARS = 60  # in one plot, so that their words stay legible


def retrieval_figures(
    data: DataSet, zero_shot: LoadedBundle, released: LoadedBundle, cache: EvaluationCache, *, out: Path
) -> None:
    """Draw precision-recall curves of all protocols, bars by word, and queries with their first ten answers."""
    names = {r.hexcode: r.name for r in data.images if r.hexcode is not None}
    panels: dict[str, dict[str, Floats]] = {}
    for build in (retrieval.outline_zs, retrieval.drawing_zs, retrieval.drawing_release):
        loaded, heads = (released, "release") if build is retrieval.drawing_release else (zero_shot, "zero-shot")
        protocols = forms(build, data, cache, side_of(loaded))
        canonical = protocols[True, side_of(loaded)]
        own = trained(loaded, cache, "retrieval", heads)
        scores = retrieval.scores(canonical, own.embed)
        ranked = ranked_relevance(scores, retrieval.relevance(canonical))
        curves = {"Vermouth": precision_recall(ranked)}
        for each in untrained_of(loaded, cache):
            protocol = protocols[each.canonical, each.side]
            others = retrieval.scores(protocol, each.embed, centred=each.centred)
            curves[each.name] = precision_recall(ranked_relevance(others, retrieval.relevance(protocol)))
        panels[canonical.name] = curves
        # Every outline is a class of its own, so there is nothing to group.
        if build is not retrieval.outline_zs:
            for title, values in (("R@10", hit_at(ranked, FIRST)), ("mAP", average_precision(ranked))):
                word_bars(
                    canonical.group_names,
                    group_means(values, canonical.groups),
                    title=f"{title} a word, {canonical.name}",
                    file=out / f"{canonical.name}-words-{title.replace('@', '').lower()}.png",
                )
        (out / f"{canonical.name}-answers.png").write_bytes(png(contact_sheet(canonical, scores, names)))
    precision_recall_plot(panels, out / "precision-recall.png")


def contact_sheet(protocol: retrieval.Protocol, scores: NDArray[np.float32], names: Mapping[str, str]) -> Image.Image:
    """The first query of evenly spaced words and its first ten answers by [Q, G] `scores`, relevant ones in green."""
    groups = np.unique(protocol.groups)
    chosen = groups[np.linspace(0, len(groups) - 1, min(SHOWN_WORDS, len(groups))).astype(int)]
    rows = []
    for group in chosen:
        query = int(np.flatnonzero(protocol.groups == group)[0])
        row = [Cell(image=Image.fromarray(protocol.queries[query]), lines=[protocol.group_names[int(group)]])]
        for found in np.argsort(-scores[query], kind="stable")[:FIRST]:
            code = protocol.classes[int(found)]
            row.append(
                Cell(
                    image=Image.fromarray(protocol.gallery[found]),
                    lines=[names[code], f"{scores[query, found]:.2f}"],
                    colour=RIGHT if code in protocol.wanted[query] else WRONG,
                )
            )
        rows.append(row)
    return grid(rows)


def fewshot_figures(data: DataSet, loaded: LoadedBundle, episodes: int, cache: EvaluationCache, *, out: Path) -> None:
    """Draw which unseen words are taken for which: 20-way 5-shot on drawings."""
    pool = fewshot.drawings(data, side_of(loaded))
    features = trained(loaded, cache, "fewshot", "zero-shot").embed(pool.pixels)
    shares = fewshot.confusions(pool, features, n_way=20, k_shot=5, episodes=episodes)
    title = "unseen words, 20-way 5-shot: share of the episodes that hold both"
    confusion_plot(shares, pool.labels, title=title, file=out / "fewshot-confusion.png")


def segment_figures(data: DataSet, loaded: LoadedBundle, tallies: Mapping[str, SceneTally], out: Path) -> None:
    """Draw evaluation scenes with answered and true masks, and the reliability of their probabilities."""
    segment = segmenter(loaded)
    for name, pool in scene_pools(data).items():
        rows = []
        for index in range(SHOWN_SCENES):
            scene = compose_evaluation_scene(pool, index)
            labels, _ = segment(scene.pixels, scene.prompts)
            rows.append(scene_row(scene, labels, title=f"scene {index}, {name} names"))
        (out / f"scenes-{name}.png").write_bytes(png(below(rows)))
    calibrations = {name: tally.calibration() for name, tally in tallies.items()}
    reliability_plot(calibrations, out / "scenes-reliability.png")


def robustness_figure(rows: Sequence[Row], out: Path) -> None:
    """Draw R@10 by way of drawing; the line is 0.05 below plain drawings."""
    drawn = {row["drawn"]: row["r_10"] for row in rows}
    least = drawn["plain"] - 0.05
    ways_bars(list(drawn), list(drawn.values()), least=least, title="R@10", file=out / "robustness.png")


def precision_recall_plot(panels: Mapping[str, Mapping[str, Floats]], file: Path) -> None:
    """Draw precision at evenly spaced recalls from 0 to 1, a panel a protocol and a line a model."""
    with _figure(file, columns=len(panels), width=4.2, height=4.4) as (figure, axes):
        for axis, (protocol, curves) in zip(axes, panels.items(), strict=True):
            for number, (model, curve) in enumerate(curves.items()):
                axis.plot(np.linspace(0, 1, len(curve)), curve, label=model, linewidth=2.5 if not number else 1.2)
            axis.set(title=protocol, xlabel="recall", xlim=(0, 1), ylim=(0, 1))
        axes[0].set_ylabel("interpolated precision, mean over queries")
        lines = list(dict.fromkeys(model for curves in panels.values() for model in curves))
        handles = {line.get_label(): line for axis in axes for line in axis.get_lines()}
        figure.legend([handles[name] for name in lines], lines, loc="outside lower center", ncols=3, fontsize=8)


def word_bars(words: Sequence[str], values: Floats, *, title: str, file: Path) -> None:
    """Draw a bar a word, best first; of many words only the best and the worst."""
    order = np.argsort(-values, kind="stable")
    half = _MOST_BARS // 2
    parts = [("", order)] if len(order) <= _MOST_BARS else [("best: ", order[:half]), ("worst: ", order[-half:])]
    with _figure(file, columns=len(parts), width=11 / len(parts), height=4) as (_, axes):
        for axis, (which, rows) in zip(axes, parts, strict=True):
            axis.bar(np.arange(len(rows)), values[rows], color="C0")
            axis.axhline(values.mean(), color="C3", linewidth=1)
            axis.set_xticks(np.arange(len(rows)), [words[row] for row in rows], rotation=90, fontsize=7)
            axis.set(title=f"{which}{title}", ylim=(0, 1), xlim=(-0.7, len(rows) - 0.3))


def confusion_plot(shares: Floats, names: Sequence[str], *, title: str, file: Path) -> None:
    """Draw [N, N] shares of answers, a row the truth; rows need not sum to one."""
    side = max(4.0, 0.14 * len(names) + 2)
    brightest = max(0.05, float(np.quantile(shares, 0.995)))  # the largest saturate, so that rare confusions show
    with _figure(file, columns=1, width=side, height=side) as (figure, (axis,)):
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=brightest)
        axis.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=6)
        axis.set_yticks(np.arange(len(names)), names, fontsize=6)
        axis.set(title=title, xlabel="answered", ylabel="true")
        figure.colorbar(image, shrink=0.5)


def reliability_plot(found: Mapping[str, Calibration], file: Path) -> None:
    """Draw accuracy over confidence, with the share of pixels in each bin; a panel a pool."""
    with _figure(file, columns=len(found), width=4, height=3.8) as (_, axes):
        for axis, (name, each) in zip(axes, found.items(), strict=True):
            filled = each.share > 0
            axis.bar(each.confidence[filled], each.share[filled], width=0.04, color="0.85", label="share of pixels")
            axis.plot([0, 1], [0, 1], color="0.6", linewidth=1)
            axis.plot(each.confidence[filled], each.accuracy[filled], "o-", label="accuracy")
            axis.set(title=f"{name}: error {each.error:.3f}", xlabel="probability of the answer", xlim=(0, 1))
            axis.set_ylim(0, 1)
            axis.legend(fontsize=8)


def ways_bars(names: Sequence[str], values: Sequence[float], *, least: float, title: str, file: Path) -> None:
    """Draw a horizontal bar a way of drawing, and the least that is required as a line."""
    with _figure(file, columns=1, width=6, height=0.4 * len(names) + 1) as (_, (axis,)):
        axis.barh(np.arange(len(names)), values, color=["C0" if value >= least else "C3" for value in values])
        axis.axvline(least, color="0.3", linewidth=1)
        axis.set_yticks(np.arange(len(names)), names)
        axis.set(title=title, xlim=(0, 1))
        axis.invert_yaxis()  # first on top


@contextmanager
def _figure(file: Path, *, columns: int, width: float, height: float) -> Iterator[tuple[Figure, Any]]:
    figure = Figure(figsize=(width * columns, height), layout="constrained")  # without pyplot, which wants a display
    yield figure, figure.subplots(1, columns, squeeze=False)[0]
    figure.savefig(file, dpi=_DPI)
