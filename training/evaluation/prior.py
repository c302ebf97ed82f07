"""Does the prior know what it is asked for? Samples by name, recognised by a classifier of real pictures.

The classifier reads the frozen expert, which no training of the prior touched. Beside the share that is recognised
stands how far samples are from the nearest training picture: a prior that only copies would be very near.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from training.data.dataset import DataSet, PictureRecord

CLASSES = 100
SAMPLES = 256
STYLES = {
    "openmoji": "a flat picture of {}",
    "noto": "a glossy emoji of {}",
    "twemoji": "a simple emoji of {}",
    "fluent": "a 3D picture of {}",
}
"""Captions by which training called the four styles of emoji."""

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the prior is asked.

    Attributes:
        names: the 100 class names.
        captions: of the 256 samples, styles in turn.
        wanted: [256] index into `names`.
        known: pictures of the 100 classes that the classifier learns from.
        labels: class of each of them.
    """

    names: tuple[str, ...]
    captions: tuple[str, ...]
    wanted: NDArray[np.int64]
    known: tuple[PictureRecord, ...]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorFigures:
    """How the samples fare.

    Attributes:
        samples, classes: counts.
        recognised: share whose most likely class is the wanted one.
        recognised_5: share with the wanted class among the five most likely.
        ceiling: the same classifier on Fluent's flat pictures of the classes, which it never saw.
        nearest: mean cosine of a sample to the nearest training picture.
        nearest_real: of a real picture to the nearest training picture of another style or class.
        copies: share of samples nearer to a training picture than 99 % of real pictures are to another.
    """

    samples: int
    classes: int
    recognised: float
    recognised_5: float
    ceiling: float
    nearest: float
    nearest_real: float
    copies: float


def question(data: DataSet, *, seed: int = 0) -> Question:
    """100 seen classes drawn among those with all four styles, and 256 captions.

    Args:
        data: the data set.
        seed: of the draw.
    """
    by_class: dict[str, list[PictureRecord]] = {}
    for record in data.rows(lambda r: r.kind == "picture" and r.split == "seen" and r.source in STYLES):
        by_class.setdefault(record.hexcode or "", []).append(record)
    complete = sorted(code for code, records in by_class.items() if {r.source for r in records} == set(STYLES))
    rng = np.random.default_rng(seed)
    chosen = [complete[i] for i in np.sort(rng.choice(len(complete), CLASSES, replace=False))]
    names = tuple(by_class[code][0].name for code in chosen)
    wanted = np.arange(SAMPLES) % CLASSES
    styles = list(STYLES.values())
    captions = tuple(styles[(i + i // CLASSES) % len(styles)].format(names[w]) for i, w in enumerate(wanted))
    known = [(record, label) for label, code in enumerate(chosen) for record in by_class[code]]
    return Question(
        names=names,
        captions=captions,
        wanted=wanted,
        known=tuple(record for record, _ in known),
        labels=np.array([label for _, label in known]),
    )


def measure(data: DataSet, asked: Question, samples: NDArray[np.uint8], embed: Embed) -> PriorFigures:
    """Figures of the samples.

    Args:
        data: the data set.
        asked: the question they answer.
        samples: [256, 128, 128, 3] uint8 RGB.
        embed: the expert: pictures to unit vectors.
    """
    drawn = _embedded(embed, samples)
    known = _embedded(embed, _pixels(data, asked.known))
    classifier = LogisticRegression(C=100.0, max_iter=2000).fit(known, asked.labels)
    order = np.argsort(-classifier.decision_function(drawn), axis=1)
    flat = {r.name: r for r in data.rows(lambda r: r.split == "evaluation")}
    held_out = [(flat[name], label) for label, name in enumerate(asked.names) if name in flat]
    guessed = classifier.predict(_embedded(embed, _pixels(data, [record for record, _ in held_out])))
    trained_on = _embedded(embed, _pixels(data, data.rows(lambda r: r.kind == "picture" and r.split == "seen")))
    nearest = (drawn @ trained_on.T).max(axis=1)
    among_real = known @ trained_on.T
    among_real[among_real > 1 - 1e-5] = -1  # the picture itself
    nearest_real = among_real.max(axis=1)
    return PriorFigures(
        samples=len(samples),
        classes=len(asked.names),
        recognised=float((order[:, 0] == asked.wanted).mean()),
        recognised_5=float((order[:, :5] == asked.wanted[:, None]).any(axis=1).mean()),
        ceiling=float((guessed == np.array([label for _, label in held_out])).mean()),
        nearest=float(nearest.mean()),
        nearest_real=float(nearest_real.mean()),
        copies=float((nearest > np.quantile(nearest_real, 0.99)).mean()),
    )


def _pixels(data: DataSet, records: Sequence[PictureRecord]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(data.pixels[record.row]) for record in records])


def _embedded(embed: Embed, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([embed(pixels[start : start + 32]) for start in range(0, len(pixels), 32)])
