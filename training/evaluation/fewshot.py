"""The few-shot protocols of the embedded default: N-way K-shot episodes, 600 of them, three queries a class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.fewshot import prototype_probabilities
from models.transforms import canonical_strokes
from training.data.dataset import SIDE, DataSet
from training.evaluation.metrics import mean_and_ci95
from training.evaluation.retrieval import Images, canonical_images

VENDORS = ("openmoji", "noto", "twemoji", "fluent")
QUERIES, EPISODES = 3, 600  # queries a class; episodes a setting
SURE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotPool:
    """Images by class."""

    name: str  # of the protocol
    pixels: NDArray[np.uint8]  # [N, 128, 128, 3] uint8
    rows: Sequence[NDArray[np.int64]]  # row numbers of each class
    labels: Sequence[str] = ()  # of each class


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotFigures:
    """Mean accuracy over episodes, half its 95 % interval, and the share of sure answers that are wrong."""

    protocol: str
    n_way: int
    k_shot: int
    accuracy: float
    ci95: float
    sure_and_wrong: float  # of the answers whose probability is over `SURE`; 0 without any


def vendors(data: DataSet, images: Images = canonical_images) -> ShotPool:
    """Unseen classes, each image by another vendor; classes with four vendors, so that three queries remain."""
    found = data.rows(lambda r: r.kind == "picture" and r.split == "unseen" and r.source in VENDORS)
    return _pool("fewshot-vendors", images(data, found), [r.hexcode or "" for r in found], least=1 + QUERIES)


def drawings(data: DataSet, side: int = SIDE) -> ShotPool:
    """Drawings of the unseen words at `side` px."""
    found = [d for d in data.drawings if d.split == "unseen"]
    pixels = np.stack([canonical_strokes(d.strokes, side) for d in found])
    return _pool("fewshot-drawings", pixels, [d.word for d in found], least=5 + QUERIES)


def measure(
    pool: ShotPool, features: NDArray[np.float32], *, n_way: int, k_shot: int, episodes: int = EPISODES, seed: int = 0
) -> ShotFigures:
    """Accuracy of prototypes, the normalized means of the support (Snell et al. 2017).

    Args:
        features: [N, D] float32, unit length, of the pool's images.
        seed: of the episodes' classes and images.
    """
    drawn = list(_episodes(pool, features, n_way=n_way, k_shot=k_shot, episodes=episodes, seed=seed))
    is_right = np.array([truth == answers for truth, answers, _ in drawn])
    is_sure = np.array([probabilities > SURE for _, _, probabilities in drawn])
    accuracy, ci95 = mean_and_ci95(is_right.mean(axis=1))
    wrong = float((is_sure & ~is_right).sum() / max(1, is_sure.sum()))
    return ShotFigures(
        protocol=pool.name, n_way=n_way, k_shot=k_shot, accuracy=accuracy, ci95=ci95, sure_and_wrong=wrong
    )


def confusions(
    pool: ShotPool, features: NDArray[np.float32], *, n_way: int, k_shot: int, episodes: int = EPISODES, seed: int = 0
) -> NDArray[np.float64]:
    """Share of answers by class when both classes are in an episode: [classes, classes], rows the truth.

    Arguments as of `measure`. The diagonal is the share of right answers.
    """
    counts = np.zeros((len(pool.rows), len(pool.rows)))
    together = np.zeros_like(counts)
    for truth, answers, _ in _episodes(pool, features, n_way=n_way, k_shot=k_shot, episodes=episodes, seed=seed):
        np.add.at(counts, (truth, answers), 1)
        together[np.ix_(np.unique(truth), np.unique(truth))] += QUERIES
    return np.asarray(counts / np.maximum(together, 1))


def _episodes(
    pool: ShotPool, features: NDArray[np.float32], *, n_way: int, k_shot: int, episodes: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """True and answered classes of each episode's queries, numbers of `pool.rows`, and the answers' probabilities.

    [n_way · QUERIES] each.
    """
    # Seeded by the setting, not by the model: all models answer the same episodes.
    rng = np.random.default_rng([seed, n_way, k_shot])
    classes = np.array([number for number, rows in enumerate(pool.rows) if len(rows) >= k_shot + QUERIES])
    for _ in range(episodes):
        chosen = classes[rng.choice(len(classes), size=n_way, replace=False)]
        drawn = [rng.permutation(pool.rows[number])[: k_shot + QUERIES] for number in chosen]
        queries = np.concatenate([features[rows[k_shot:]] for rows in drawn])
        found = prototype_probabilities([features[rows[:k_shot]] for rows in drawn], queries)
        yield np.repeat(chosen, QUERIES), chosen[found.argmax(axis=1)], found.max(axis=1)


def _pool(name: str, pixels: NDArray[np.uint8], labels: list[str], *, least: int) -> ShotPool:
    by_label: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        by_label.setdefault(label, []).append(row)
    chosen = sorted(label for label, found in by_label.items() if len(found) >= least)
    rows = [np.array(by_label[label], dtype=np.int64) for label in chosen]
    return ShotPool(name=name, pixels=pixels, rows=rows, labels=chosen)
