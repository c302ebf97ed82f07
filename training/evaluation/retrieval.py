"""The retrieval protocols of the embedded default: outline-zs, drawing-zs, drawing-release.

drawing-release also has variants in which the validation drawings are rasters as people send them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from models.transforms import canonical_image, canonical_strokes
from training.data.dataset import DataSet, DrawingRecord, ImageRecord, Strokes
from training.evaluation.metrics import (
    average_precision,
    hit_at,
    macro_mean,
    precision_at,
    ranked_relevance,
    voc_average_precision,
)

GALLERY_STYLES = ("noto", "twemoji", "fluent")
RASTER_VERSION = "drawn-1"  # of the rasters; evaluations cache their canonical images under it
CANVAS_SIDE = 256  # side of the canvas that line widths refer to, px
_SUPERSAMPLING = 4  # PIL draws no antialiased lines
_MARGIN = 16  # px, around a drawing

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # [B, 128, 128, 3] uint8 → [B, D] float32, unit length

Images = Callable[[DataSet, Sequence[ImageRecord]], NDArray[np.uint8]]
"""Pixels of some records, [len(records), 128, 128, 3] uint8."""

Draw = Callable[[Strokes, np.random.Generator], NDArray[np.uint8]]  # strokes → a raster, [S, S, 3] uint8


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Queries, a gallery, and which images are relevant."""

    name: str  # in tables
    queries: NDArray[np.uint8]  # [Q, 128, 128, 3] uint8
    wanted: Sequence[tuple[str, ...]]  # relevant classes of each query
    groups: NDArray[np.int64]  # [Q] number of each query's class or word, for means over classes
    group_names: Sequence[str]  # by number
    gallery: NDArray[np.uint8]  # [G, 128, 128, 3] uint8
    classes: Sequence[str]  # class of each gallery image


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


def canonical_images(data: DataSet, records: Sequence[ImageRecord]) -> NDArray[np.uint8]:
    """Images as the service sees them; `EvaluationCache.images` returns the same and caches them."""
    return np.stack([canonical_image(np.asarray(data.pixels[record.row])) for record in records])


def rendered_images(data: DataSet, records: Sequence[ImageRecord]) -> NDArray[np.uint8]:
    """Images as rendered, which suit an untrained expert better."""
    return np.stack([np.asarray(data.pixels[record.row]) for record in records])


def outline_zs(data: DataSet, images: Images = canonical_images) -> Protocol:
    """Outlines of the unseen classes against three styles of the same classes."""
    rows = data.rows(lambda r: r.source == "openmoji" and r.kind == "outline" and r.split == "unseen")
    gallery, classes = _gallery(data, images, unseen_only=True)
    return Protocol(
        name="outline-zs",
        queries=images(data, rows),
        wanted=[(r.hexcode or "",) for r in rows],
        groups=np.arange(len(rows)),
        group_names=[r.name for r in rows],
        gallery=gallery,
        classes=classes,
    )


def drawing_zs(data: DataSet, images: Images = canonical_images) -> Protocol:
    """Every drawing of the unseen words that have emoji, against the gallery of `outline_zs`."""
    return _drawings(data, images, "drawing-zs", validation=False)


def drawing_release(data: DataSet, images: Images = canonical_images) -> Protocol:
    """The validation drawings of words with emoji against three styles of all classes."""
    return _drawings(data, images, "drawing-release", validation=True)


def scores(protocol: Protocol, embed: Embed, *, centred: bool = False) -> NDArray[np.float32]:
    """[Q, G] cosine similarities; `embed` is called with all images of a side at once."""
    queries, gallery = embed(protocol.queries), embed(protocol.gallery)
    # Closes most of the gap between sketches and images for untrained features, but needs all queries at once.
    if centred:
        queries, gallery = centre(queries), centre(gallery)
    found: NDArray[np.float32] = queries @ gallery.T
    return found


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
    """[Q, G] bool: True where an image is relevant for a query."""
    classes = np.array(protocol.classes)
    return np.stack([np.isin(classes, wanted) for wanted in protocol.wanted])


def in_batches(embed: Embed, pixels: NDArray[np.uint8], size: int = 32) -> NDArray[np.float32]:
    """`embed` over many images, a batch at a time."""
    return np.concatenate([embed(pixels[start : start + size]) for start in range(0, len(pixels), size)])


def centre(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, D] minus its mean, scaled to unit length."""
    return unit_length(features - features.mean(axis=0))


def unit_length(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """[N, D] float32, scaled to unit length; zeros stay zero."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _gallery(data: DataSet, images: Images, *, unseen_only: bool) -> tuple[NDArray[np.uint8], list[str]]:
    rows = data.rows(
        lambda r: r.source in GALLERY_STYLES and r.kind == "picture" and (r.split == "unseen" or not unseen_only)
    )
    return images(data, rows), [r.hexcode or "" for r in rows]


def _drawings(data: DataSet, images: Images, name: str, *, validation: bool) -> Protocol:
    chosen = [d for d in data.drawings if d.hexcodes and (d.validation if validation else d.split == "unseen")]
    words = {word: number for number, word in enumerate(sorted({d.word for d in chosen}))}
    gallery, classes = _gallery(data, images, unseen_only=not validation)
    return Protocol(
        name=name,
        queries=np.stack([canonical_strokes(d.strokes, gallery.shape[1]) for d in chosen]),
        wanted=[d.hexcodes for d in chosen],
        groups=np.array([words[d.word] for d in chosen]),
        group_names=list(words),
        gallery=gallery,
        classes=classes,
    )


def drawn(strokes: Strokes, *, side: int = CANVAS_SIDE, box: tuple[int, int, int], width: float) -> NDArray[np.float32]:
    """Strokes drawn with a round pen, antialiased: [side, side] float32, the share of each pixel that is covered.

    Args:
        strokes: `[[x…], [y…]]` in 0–255.
        side: of the canvas, px.
        box: left, top and side of the square that 0–255 is mapped to, px.
        width: of the line, px.
    """
    left, top, extent = (value * _SUPERSAMPLING for value in box)
    canvas = Image.new("L", (side * _SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    thick = max(1, round(width * _SUPERSAMPLING))
    for xs, ys in strokes:
        points = [(left + x / 255 * extent, top + y / 255 * extent) for x, y in zip(xs, ys, strict=True)]
        if len(points) > 1:
            pen.line(points, fill=255, width=thick, joint="curve")
        # PIL ends lines flat; discs make the ends round.
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    small = canvas.resize((side, side), Image.Resampling.BOX)
    return np.asarray(np.asarray(small) / 255, dtype=np.float32)


def variants() -> Mapping[str, Draw]:
    """Ways of drawing by name; the others are compared with `plain`."""
    whole = (_MARGIN, _MARGIN, CANVAS_SIDE - 2 * _MARGIN)

    def lines(width: float) -> Draw:
        return lambda strokes, _rng: on_white(drawn(strokes, box=whole, width=width))

    def in_a_corner(strokes: Strokes, rng: np.random.Generator) -> NDArray[np.uint8]:
        side = 3 * CANVAS_SIDE
        left, top = (int(v) for v in rng.choice([_MARGIN, side - CANVAS_SIDE + _MARGIN], 2))
        return on_white(drawn(strokes, side=side, box=(left, top, CANVAS_SIDE - 2 * _MARGIN), width=3))

    def small(strokes: Strokes, rng: np.random.Generator) -> NDArray[np.uint8]:
        extent = round(0.3 * whole[2])
        left, top = (int(v) for v in rng.integers(4, CANVAS_SIDE - extent - 4, 2))
        return on_white(drawn(strokes, box=(left, top, extent), width=1.5))

    return {
        "plain": lines(3),
        "in a corner": in_a_corner,
        "scaled × 0.3": small,
        "1 px lines": lines(1),
        "6 px lines": lines(6),
        "12 px lines": lines(12),
        "white on black": lambda strokes, _rng: 255 - on_white(drawn(strokes, box=whole, width=3)),
        "photographed": lambda strokes, rng: photographed(drawn(strokes, box=whole, width=3), rng),
    }


def on_white(coverage: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Black lines on white: [H, W] float32 → [H, W, 3] uint8."""
    return np.repeat(np.round(255 * (1 - coverage)).astype(np.uint8)[..., None], 3, axis=2)


def photographed(coverage: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A pen on a grey sheet in uneven light, slightly soft and noisy: [H, W] float32 → [H, W, 3] uint8."""
    height, width = coverage.shape
    soft = Image.fromarray((255 * coverage).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))
    y, x = np.mgrid[:height, :width] / max(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 - rng.uniform(0.25, 0.45) * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.5)
    background = rng.uniform(170, 215) + rng.normal(0, 4, 3)
    pen = rng.uniform(20, 60) + rng.normal(0, 6, 3)
    foreground = np.asarray(soft, dtype=np.float64)[..., None] / 255
    photo = (background + (pen - background) * foreground) * light[..., None] + rng.normal(0, 3, (height, width, 1))
    return np.asarray(np.clip(np.round(photo), 0, 255), dtype=np.uint8)


def rasters(drawings: Sequence[DrawingRecord], draw: Draw) -> list[NDArray[np.uint8]]:
    """Every drawing in one way, with a generator of its own, so that each stays the same whatever the others."""
    return [draw(drawing.strokes, np.random.default_rng([7, number])) for number, drawing in enumerate(drawings)]
