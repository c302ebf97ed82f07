"""The retrieval protocols of the embedded default: outline-zs, drawing-zs, drawing-release."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.transforms import canonical_image, canonical_strokes
from training.data.dataset import DataSet, PictureRecord
from training.evaluation.metrics import (
    average_precision,
    hit_at,
    macro_mean,
    precision_at,
    ranked_relevance,
    voc_average_precision,
)

GALLERY_STYLES = ("noto", "twemoji", "fluent")

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""[B, 128, 128, 3] uint8 canonical pictures → [B, D] float32, unit length."""

Pictures = Callable[[DataSet, Sequence[PictureRecord]], NDArray[np.uint8]]
"""Pictures of some records, [len(records), 128, 128, 3] uint8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Queries, a gallery, and what counts as found.

    Attributes:
        queries: [Q, 128, 128, 3] uint8.
        wanted: classes that are right for each query.
        groups: [Q] class or word of each query, for means over classes.
        group_names: what the groups are called, by their number.
        gallery: [G, 128, 128, 3] uint8.
        classes: class of each gallery picture.
    """

    name: str
    queries: NDArray[np.uint8]
    wanted: Sequence[tuple[str, ...]]
    groups: NDArray[np.int64]
    group_names: Sequence[str]
    gallery: NDArray[np.uint8]
    classes: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalFigures:
    """Macro means over classes or words; `map_voc` uses the precision envelope."""

    protocol: str
    queries: int
    gallery: int
    map_all: float
    map_voc: float
    p_1: float
    r_10: float


def canonical_pictures(data: DataSet, records: Sequence[PictureRecord]) -> NDArray[np.uint8]:
    """As the service sees them; `EvaluationCache.pictures` gives the same and keeps them."""
    return np.stack([canonical_image(np.asarray(data.pixels[record.row])) for record in records])


def rendered_pictures(data: DataSet, records: Sequence[PictureRecord]) -> NDArray[np.uint8]:
    """As rendered, which an untrained expert prefers."""
    return np.stack([np.asarray(data.pixels[record.row]) for record in records])


def outline_zs(data: DataSet, pictures: Pictures = canonical_pictures) -> Protocol:
    """Outlines of the unseen classes against three styles of the same classes."""
    rows = data.rows(lambda r: r.source == "openmoji" and r.kind == "outline" and r.split == "unseen")
    gallery, classes = _gallery(data, pictures, unseen_only=True)
    return Protocol(
        name="outline-zs",
        queries=pictures(data, rows),
        wanted=[(r.hexcode or "",) for r in rows],
        groups=np.arange(len(rows)),
        group_names=[r.name for r in rows],
        gallery=gallery,
        classes=classes,
    )


def drawing_zs(data: DataSet, pictures: Pictures = canonical_pictures) -> Protocol:
    """Every drawing of the unseen words that have emoji, against the gallery of `outline_zs`."""
    return _drawings(data, pictures, "drawing-zs", validation=False)


def drawing_release(data: DataSet, pictures: Pictures = canonical_pictures) -> Protocol:
    """The validation drawings of words with emoji against three styles of all classes."""
    return _drawings(data, pictures, "drawing-release", validation=True)


def measure(protocol: Protocol, embed: Embed, *, centred: bool = False) -> RetrievalFigures:
    """Ranks the gallery for every query by cosine and averages over classes or words.

    Args:
        protocol: queries and gallery.
        embed: the model, given all pictures of a side at once.
        centred: queries and gallery each lose their own mean first. It closes most of the gap between
            sketches and pictures for features that were never trained to, at the price of seeing all
            queries at once.
    """
    queries, gallery = embed(protocol.queries), embed(protocol.gallery)
    if centred:
        queries, gallery = centre(queries), centre(gallery)
    return figures(protocol, queries @ gallery.T)


def figures(protocol: Protocol, scores: NDArray[np.float32]) -> RetrievalFigures:
    """The figures of a [Q, G] score matrix."""
    ranked = ranked_relevance(scores, relevance(protocol))
    return RetrievalFigures(
        protocol=protocol.name,
        queries=len(protocol.queries),
        gallery=len(protocol.gallery),
        map_all=macro_mean(average_precision(ranked), protocol.groups),
        map_voc=macro_mean(voc_average_precision(ranked), protocol.groups),
        p_1=macro_mean(precision_at(ranked, 1), protocol.groups),
        r_10=macro_mean(hit_at(ranked, 10), protocol.groups),
    )


def relevance(protocol: Protocol) -> NDArray[np.bool_]:
    """[Q, G]: which pictures are right for which query."""
    classes = np.array(protocol.classes)
    return np.stack([np.isin(classes, wanted) for wanted in protocol.wanted])


def in_batches(embed: Embed, pixels: NDArray[np.uint8], size: int = 32) -> NDArray[np.float32]:
    """`embed` over many pictures, a batch at a time."""
    return np.concatenate([embed(pixels[start : start + size]) for start in range(0, len(pixels), size)])


def centre(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, D] less its mean, unit length again."""
    moved = features - features.mean(axis=0)
    return np.asarray(moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _gallery(data: DataSet, pictures: Pictures, *, unseen_only: bool) -> tuple[NDArray[np.uint8], list[str]]:
    rows = data.rows(
        lambda r: r.source in GALLERY_STYLES and r.kind == "picture" and (r.split == "unseen" or not unseen_only)
    )
    return pictures(data, rows), [r.hexcode or "" for r in rows]


def _drawings(data: DataSet, pictures: Pictures, name: str, *, validation: bool) -> Protocol:
    chosen = [d for d in data.drawings if d.hexcodes and (d.validation if validation else d.split == "unseen")]
    words = {word: number for number, word in enumerate(sorted({d.word for d in chosen}))}
    gallery, classes = _gallery(data, pictures, unseen_only=not validation)
    return Protocol(
        name=name,
        queries=np.stack([canonical_strokes(d.strokes) for d in chosen]),
        wanted=[d.hexcodes for d in chosen],
        groups=np.array([words[d.word] for d in chosen]),
        group_names=list(words),
        gallery=gallery,
        classes=classes,
    )
