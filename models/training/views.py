"""What heads are trained on: pictures, sketches made from them, drawings, and which of them show the same thing."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import DataSet, DrawingRecord, PictureRecord
from models.data.render import SIDE
from models.linework import trace_linework
from models.training.augment import edge_lines, redraw, to_lines, to_strokes
from models.transforms import canonical_image, fit_square, render_strokes

Kind = Literal["picture", "outline", "edges", "drawing", "icon"]

OUTLINE_STRENGTHS = (0.0, 0.5, 0.8, 1.0)
DRAWING_STRENGTHS = (0.0, 0.6)
EDGE_SOURCES = ("noto", "fluent")
ICON_SOURCES = ("phosphor-regular", "phosphor-fill")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingView:
    """One encoder input and what it shows.

    Attributes:
        pixels: [128, 128, 3] uint8 RGB, canonical.
        kind: where it comes from; all but `picture` are sketches.
        concepts: OpenMoji hexcodes it shows; for a word or an icon without emoji one made-up code of its own.
        name: what it is called.
        is_unseen: whether zero-shot heads must not see it.
    """

    pixels: NDArray[np.uint8]
    kind: Kind
    concepts: tuple[str, ...]
    name: str
    is_unseen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSet:
    """All views of one seed, made once.

    Attributes:
        pixels: [N, 128, 128, 3] uint8, memory-mapped.
        kinds, concepts, names: of each view, see `TrainingView`.
        is_unseen: [N] bool.
    """

    pixels: NDArray[np.uint8]
    kinds: tuple[str, ...]
    concepts: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    is_unseen: NDArray[np.bool_]


def build_views(dataset: DataSet, folder: Path, seed: int, progress: Callable[[int, float], None]) -> ViewSet:
    """Makes every training view and keeps them in `folder`, or opens what an earlier call finished."""
    index = folder / "views.jsonl"
    if not index.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shape = (count_views(dataset), SIDE, SIDE, 3)
        pixels = np.lib.format.open_memmap(folder / "views.npy", mode="w+", dtype=np.uint8, shape=shape)
        lines = []
        for row, view in enumerate(training_views(dataset, seed)):
            pixels[row] = view.pixels
            lines.append(json.dumps([view.kind, view.concepts, view.name, view.is_unseen]) + "\n")
            progress(row + 1, 0.0)
        pixels.flush()
        index.write_text("".join(lines))
    facts = [json.loads(line) for line in index.read_text().splitlines()]
    return ViewSet(
        pixels=np.load(folder / "views.npy", mmap_mode="r")[: len(facts)],
        kinds=tuple(f[0] for f in facts),
        concepts=tuple(tuple(f[1]) for f in facts),
        names=tuple(f[2] for f in facts),
        is_unseen=np.array([f[3] for f in facts], dtype=bool),
    )


def count_views(dataset: DataSet) -> int:
    """An upper bound on what `training_views` yields, for progress bars."""
    total = 0
    for record in dataset.pictures:
        total += (record.kind == "picture" and record.split != "evaluation") * (1 + (record.source in EDGE_SOURCES))
        total += (record.source == "openmoji" and record.kind == "outline") * len(OUTLINE_STRENGTHS)
        total += record.source == "fluent-contrast" or record.source in ICON_SOURCES
    return total + sum(not d.validation for d in dataset.drawings) * len(DRAWING_STRENGTHS)


def training_views(dataset: DataSet, seed: int) -> Iterator[TrainingView]:
    """Everything but validation drawings and the evaluation style, each augmented by its own seed.

    Args:
        dataset: the data set.
        seed: of the augmentation; the same seed gives the same views.
    """
    for record in dataset.pictures:
        yield from _of_picture(dataset, record, np.random.default_rng([seed, 0, record.row]))
    for number, drawing in enumerate(dataset.drawings):
        if not drawing.validation:
            yield from _of_drawing(drawing, np.random.default_rng([seed, 1, number]))


def _of_picture(dataset: DataSet, record: PictureRecord, rng: np.random.Generator) -> Iterator[TrainingView]:
    if record.split == "evaluation":
        return
    pixels = np.asarray(dataset.pixels[record.row])
    if record.kind == "picture":
        yield _view(record, "picture", _moved(canonical_image(pixels), rng))
        lines = edge_lines(pixels, float(rng.uniform(1.6, 3.2))) if record.source in EDGE_SOURCES else None
        if lines is not None:
            yield _view(record, "edges", _rendered(redraw(lines, rng, strength=float(rng.uniform(0.2, 0.9)))))
    elif record.source == "openmoji":
        strokes = trace_linework(pixels)
        if strokes is None:
            yield _view(record, "outline", canonical_image(pixels))
            return
        for strength in OUTLINE_STRENGTHS:
            yield _view(record, "outline", _rendered(redraw(to_lines(strokes), rng, strength=strength)))
    elif record.source == "fluent-contrast":
        yield _view(record, "outline", canonical_image(pixels))
    elif record.source in ICON_SOURCES:
        yield _view(record, "icon", canonical_image(pixels))


def _of_drawing(drawing: DrawingRecord, rng: np.random.Generator) -> Iterator[TrainingView]:
    for strength in DRAWING_STRENGTHS:
        yield TrainingView(
            pixels=_rendered(redraw(to_lines(drawing.strokes), rng, strength=strength)),
            kind="drawing",
            concepts=drawing.hexcodes or (f"word:{drawing.word}",),
            name=drawing.word,
            is_unseen=drawing.split == "unseen",
        )


def _view(record: PictureRecord, kind: Kind, pixels: NDArray[np.uint8]) -> TrainingView:
    return TrainingView(
        pixels=pixels,
        kind=kind,
        concepts=(record.hexcode or f"icon:{record.name}",),
        name=record.name,
        is_unseen=record.split == "unseen",
    )


def _rendered(lines: list[NDArray[np.float64]]) -> NDArray[np.uint8]:
    return np.repeat(render_strokes(to_strokes(lines))[..., None], 3, axis=2)


def _moved(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Half of the pictures smaller, off-centre or mirrored, on white."""
    if rng.random() < 0.5:
        return pixels
    side = pixels.shape[0]
    small = fit_square(pixels, int(side * rng.uniform(0.7, 1.0)))
    out = np.full_like(pixels, 255)
    top, left = (int(v) for v in rng.integers(0, side - small.shape[0] + 1, 2))
    out[top : top + small.shape[0], left : left + small.shape[0]] = small
    return out[:, ::-1] if rng.random() < 0.5 else out
