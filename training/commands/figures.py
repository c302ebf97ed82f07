"""Figures beside the tables of `vermouth eval all`: plots, contact sheets and overlays."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.bundle.build import LoadedBundle
from training.commands.embedding import Contender, segmenter, trained, untrained_of
from training.commands.sheets import LINE, RIGHT, WRONG, Cell, Share, below, beside, grid, legend, overlay, png, titled
from training.data.dataset import DataSet
from training.data.scenes import compose_evaluation_scene, seen_evaluation_pool, unseen_evaluation_pool
from training.evaluation import fewshot, plots, retrieval
from training.evaluation.cache import EvaluationCache
from training.evaluation.metrics import (
    Calibration,
    average_precision,
    group_means,
    hit_at,
    precision_recall,
    ranked_relevance,
)

SHOWN_WORDS = 10
SHOWN_SCENES = 3
FIRST = 10


def retrieval_figures(
    data: DataSet, zero_shot: LoadedBundle, released: LoadedBundle, cache: EvaluationCache, out: Path
) -> None:
    """Precision-recall curves of all protocols, bars by word, and drawings with their first ten answers."""
    names = {r.hexcode: r.name for r in data.pictures if r.hexcode is not None}
    panels: dict[str, dict[str, NDArray[np.float64]]] = {}
    for build in (retrieval.outline_zs, retrieval.drawing_zs, retrieval.drawing_release):
        loaded, heads = (released, "release") if build is retrieval.drawing_release else (zero_shot, "zero-shot")
        canonical = build(data, cache.pictures)
        own = trained(loaded, cache, "retrieval", heads)
        curves: dict[str, NDArray[np.float64]] = {}
        for each in (own, *untrained_of(loaded, cache)):
            protocol = canonical if each.canonical else build(data, retrieval.rendered_pictures)
            label = "Vermouth" if each is own else each.name
            curves[label] = precision_recall(ranked_relevance(_scores(protocol, each), retrieval.relevance(protocol)))
        panels[canonical.name] = curves
        scores = _scores(canonical, own)
        ranked = ranked_relevance(scores, retrieval.relevance(canonical))
        if build is not retrieval.outline_zs:
            for title, values in (("R@10", hit_at(ranked, FIRST)), ("mAP", average_precision(ranked))):
                plots.word_bars(
                    canonical.group_names,
                    group_means(values, canonical.groups),
                    title=f"{title} a word, {canonical.name}",
                    file=out / f"{canonical.name}-words-{title.replace('@', '').lower()}.png",
                )
        sheet = contact_sheet(canonical, scores, names)
        (out / f"{canonical.name}-answers.png").write_bytes(png(sheet))
    plots.precision_recall_plot(panels, out / "precision-recall.png")


def contact_sheet(protocol: retrieval.Protocol, scores: NDArray[np.float32], names: Mapping[str, str]) -> Image.Image:
    """The first query of evenly spaced words and its first ten answers, right ones in green.

    Args:
        protocol: queries and gallery.
        scores: [Q, G].
        names: of the gallery's classes.
    """
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


def fewshot_figures(data: DataSet, loaded: LoadedBundle, episodes: int, cache: EvaluationCache, out: Path) -> None:
    """Which unseen words are taken for which: 20-way 5-shot on drawings."""
    pool = fewshot.drawings(data)
    features = trained(loaded, cache, "fewshot", "zero-shot").embed(pool.pixels)
    shares = fewshot.confusions(pool, features, n_way=20, k_shot=5, episodes=episodes)
    title = "unseen words, 20-way 5-shot: share of the episodes that hold both"
    plots.confusion_plot(shares, pool.labels, title=title, file=out / "fewshot-confusion.png")


def segment_figures(data: DataSet, loaded: LoadedBundle, calibrations: Mapping[str, Calibration], out: Path) -> None:
    """Evaluation scenes with answered and true masks, and the reliability of their probabilities."""
    segment = segmenter(loaded)
    for name, pool in (("seen", seen_evaluation_pool(data)), ("unseen", unseen_evaluation_pool(data))):
        rows = []
        for index in range(SHOWN_SCENES):
            scene = compose_evaluation_scene(pool, index)
            labels, _ = segment(scene.pixels, scene.prompts)
            rows.append(
                beside(
                    [
                        titled(Image.fromarray(scene.pixels), f"scene {index}, {name} names"),
                        titled(overlay(scene.pixels, labels), "answered"),
                        titled(overlay(scene.pixels, scene.labels), "true"),
                        legend(_shares(labels, scene.prompts), scene.absent, height=len(scene.pixels) + LINE),
                    ]
                )
            )
        (out / f"scenes-{name}.png").write_bytes(png(below(rows)))
    plots.reliability_plot(calibrations, out / "scenes-reliability.png")


def _scores(protocol: retrieval.Protocol, each: Contender) -> NDArray[np.float32]:
    queries, gallery = each.embed(protocol.queries), each.embed(protocol.gallery)
    if each.centred:
        queries, gallery = retrieval.centre(queries), retrieval.centre(gallery)
    scores: NDArray[np.float32] = queries @ gallery.T
    return scores


def _shares(labels: NDArray[np.uint8], names: Sequence[str]) -> list[Share]:
    return [
        Share(index=number, name=name, fraction=float((labels == number).mean()))
        for number, name in enumerate(names, 1)
    ]
