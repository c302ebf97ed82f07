"""The few-shot protocols of the embedded default: N-way K-shot episodes, 600 of them, three queries a class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import DataSet
from models.evaluation.metrics import mean_and_ci95
from models.evaluation.retrieval import Pictures, canonical_pictures
from models.heads.prototype import prototypes
from models.transforms import canonical_strokes

VENDORS = ("openmoji", "noto", "twemoji", "fluent")
QUERIES = 3
EPISODES = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotPool:
    """Pictures by class: `pixels` [N, 128, 128, 3] uint8 and `rows`, the row numbers of each class."""

    name: str
    pixels: NDArray[np.uint8]
    rows: Sequence[NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotFigures:
    """Mean accuracy over episodes and half its 95 % interval."""

    protocol: str
    n_way: int
    k_shot: int
    accuracy: float
    ci95: float


def vendors(data: DataSet, pictures: Pictures = canonical_pictures) -> ShotPool:
    """Unseen classes, each picture another vendor's; classes with four vendors, so that three queries remain."""
    found = data.rows(lambda r: r.kind == "picture" and r.split == "unseen" and r.source in VENDORS)
    return _pool(
        "fewshot-vendors",
        pictures(data, found),
        [r.hexcode or "" for r in found],
        least=1 + QUERIES,
    )


def drawings(data: DataSet) -> ShotPool:
    """Drawings of the unseen words."""
    found = [d for d in data.drawings if d.split == "unseen"]
    return _pool(
        "fewshot-drawings",
        np.stack([canonical_strokes(d.strokes) for d in found]),
        [d.word for d in found],
        least=5 + QUERIES,
    )


def measure(
    pool: ShotPool, features: NDArray[np.float32], *, n_way: int, k_shot: int, episodes: int = EPISODES, seed: int = 0
) -> ShotFigures:
    """Accuracy of normalised-mean prototypes.

    Args:
        pool: which rows belong together.
        features: [N, D] float32, unit length, row by row.
        n_way, k_shot: of every episode.
        episodes: how many.
        seed: of their drawing.
    """
    rng = np.random.default_rng([seed, n_way, k_shot])
    classes = [rows for rows in pool.rows if len(rows) >= k_shot + QUERIES]
    accuracies = np.empty(episodes)
    for episode in range(episodes):
        chosen = rng.choice(len(classes), size=n_way, replace=False)
        drawn = [rng.permutation(classes[number])[: k_shot + QUERIES] for number in chosen]
        support = prototypes([features[rows[:k_shot]] for rows in drawn])
        queries = np.concatenate([features[rows[k_shot:]] for rows in drawn])
        truth = np.repeat(np.arange(n_way), QUERIES)
        accuracies[episode] = ((queries @ support.T).argmax(axis=1) == truth).mean()
    accuracy, ci95 = mean_and_ci95(accuracies)
    return ShotFigures(protocol=pool.name, n_way=n_way, k_shot=k_shot, accuracy=accuracy, ci95=ci95)


def _pool(name: str, pixels: NDArray[np.uint8], labels: list[str], *, least: int) -> ShotPool:
    by_label: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        by_label.setdefault(label, []).append(row)
    rows = [np.array(found, dtype=np.int64) for _, found in sorted(by_label.items()) if len(found) >= least]
    return ShotPool(name=name, pixels=pixels, rows=rows)
