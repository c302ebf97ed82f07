"""The prior's protocol: samples by name, recognized by a classifier of real images.

The classifier reads the frozen expert, which no training of the prior touched. The distance of samples to the nearest
training image is reported too, since a prior that only copies would be very near.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from training.data.dataset import DataSet, ImageRecord
from training.evaluation.retrieval import Embed, in_batches, rendered_images
from training.prior.corpus import CAPTIONS

CLASSES = 100
SAMPLES = 256
STYLES = {source: CAPTIONS[f"{source}/picture"] for source in ("openmoji", "noto", "twemoji", "fluent")}
"""Captions that training gave the four styles of emoji."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Captions for the prior, and images for the classifier."""

    names: tuple[str, ...]  # the 100 class names
    captions: tuple[str, ...]  # of the 256 samples, styles in turn
    wanted: NDArray[np.int64]  # [256] index into `names`
    known: tuple[ImageRecord, ...]  # images of the 100 classes that the classifier is trained on
    labels: NDArray[np.int64]  # class of each of them


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorFigures:
    """Figures of the samples."""

    samples: int
    classes: int
    recognised: float  # share whose most likely class is the wanted one
    recognised_5: float  # share with the wanted class among the five most likely
    ceiling: float  # accuracy of the classifier on Fluent's flat images of the classes, which it never saw
    nearest: float  # mean cosine of a sample to the nearest training image
    nearest_real: float  # of a real image to the nearest training image of another style or class
    copies: float  # share of samples nearer to a training image than 99 % of real images are to another


def question(data: DataSet, *, seed: int = 0) -> Question:
    """Draw 100 seen classes among those with all four styles, and write 256 captions."""
    by_class: dict[str, list[ImageRecord]] = {}
    for record in data.rows(lambda r: r.kind == "picture" and r.split == "seen" and r.source in STYLES):
        by_class.setdefault(record.hexcode or "", []).append(record)
    complete = sorted(code for code, records in by_class.items() if {r.source for r in records} == set(STYLES))
    rng = np.random.default_rng(seed)
    chosen = [complete[i] for i in np.sort(rng.choice(len(complete), CLASSES, replace=False))]
    names = tuple(by_class[code][0].name for code in chosen)
    wanted = np.arange(SAMPLES) % CLASSES
    # The style moves on with every round of classes, so that a class is asked for in several.
    styles = list(STYLES.values())
    captions = tuple(styles[(i + i // CLASSES) % len(styles)].format(names[w]) for i, w in enumerate(wanted))
    known = [(record, label) for label, code in enumerate(chosen) for record in by_class[code]]
    records, labels = zip(*known, strict=True)
    return Question(names=names, captions=captions, wanted=wanted, known=records, labels=np.array(labels))


def measure(data: DataSet, asked: Question, samples: NDArray[np.uint8], embed: Embed) -> PriorFigures:
    """Figures of [256, 128, 128, 3] uint8 RGB samples that answer a question, by the expert's embedding."""
    drawn = in_batches(embed, samples)
    known = in_batches(embed, rendered_images(data, asked.known))
    classifier = LogisticRegression(C=100.0, max_iter=2000).fit(known, asked.labels)
    order = np.argsort(-classifier.decision_function(drawn), axis=1)
    flat = {r.name: r for r in data.rows(lambda r: r.split == "evaluation")}
    held_out = [(flat[name], label) for label, name in enumerate(asked.names) if name in flat]
    guessed = classifier.predict(in_batches(embed, rendered_images(data, [record for record, _ in held_out])))
    seen = data.rows(lambda r: r.kind == "picture" and r.split == "seen")
    trained_on = in_batches(embed, rendered_images(data, seen))
    nearest = (drawn @ trained_on.T).max(axis=1)
    among_real = known @ trained_on.T
    among_real[among_real > 1 - 1e-5] = -1  # the image itself
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
