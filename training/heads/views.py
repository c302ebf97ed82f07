"""What heads are trained on: pictures, sketches made from them, drawings, and which of them show the same thing."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.sketch.linework import trace_linework
from models.transforms import canonical_image, fit_square, render_strokes
from training.data.dataset import DataSet, DrawingRecord, PictureRecord
from training.data.render import SIDE
from training.heads.augment import edge_lines, redraw, to_lines, to_strokes
from training.workers import in_processes

Kind = Literal["picture", "outline", "edges", "drawing", "icon"]

OUTLINE_STRENGTHS = (0.0, 0.5, 0.8, 1.0)
DRAWING_STRENGTHS = (0.0, 0.6)
WIDE_OUTLINE_STRENGTHS = (0.4, 0.7, 1.0)
WIDE_DRAWING_STRENGTHS = (0.45, 0.8)
EDGE_SOURCES = ("noto", "fluent")
WIDE_EDGE_SOURCES = ("openmoji", "twemoji")
ICON_SOURCES = ("phosphor-regular", "phosphor-fill")
SHARES = 64
"""Views are made in so many shares."""
ROUND_SEEDS = 1_000
"""Between the seeds of two rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingView:
    """One encoder input and what it shows.

    Attributes:
        pixels: [128, 128, 3] uint8 RGB, canonical.
        kind: where it comes from; all but `picture` are sketches.
        concepts: OpenMoji hexcodes it shows; for a word or an icon without emoji one made-up code of its own.
        name: what it is called; empty where its name says little.
        is_unseen: whether zero-shot heads must not see it.
    """

    pixels: NDArray[np.uint8]
    kind: Kind
    concepts: tuple[str, ...]
    name: str
    is_unseen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSet:
    """What many views show.

    Attributes:
        kinds, concepts, names: of each view, see `TrainingView`.
        is_unseen: [N] bool.
    """

    kinds: tuple[str, ...]
    concepts: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    is_unseen: NDArray[np.bool_]

    def __add__(self, other: "ViewSet") -> "ViewSet":
        """Both sets, one after the other."""
        return ViewSet(
            kinds=self.kinds + other.kinds,
            concepts=self.concepts + other.concepts,
            names=self.names + other.names,
            is_unseen=np.concatenate([self.is_unseen, other.is_unseen]),
        )


def build_views(
    dataset: DataSet,
    part: "ViewPart",
    folder: Path,
    seed: int,
    progress: Callable[[int, float], None],
    *,
    workers: int = 1,
) -> tuple[NDArray[np.uint8], ViewSet]:
    """Makes the views of one part and keeps them in `folder`, or opens what an earlier call finished.

    Args:
        workers: processes; the views are the same whatever their number.

    Returns:
        [N, 128, 128, 3] uint8, memory-mapped, and what they show.
    """
    index = folder / f"{part.name}.jsonl"
    if not index.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shape = (part.most(dataset), SIDE, SIDE, 3)
        pixels = np.lib.format.open_memmap(folder / f"{part.name}.npy", mode="w+", dtype=np.uint8, shape=shape)
        lines: list[str] = []
        for views in in_processes(_share_of_views, (dataset, part, seed), range(SHARES), workers):
            for view in views:
                pixels[len(lines)] = view.pixels
                lines.append(json.dumps([view.kind, view.concepts, view.name, view.is_unseen]) + "\n")
            progress(len(lines), 0.0)
        pixels.flush()
        index.write_text("".join(lines))
    facts = [json.loads(line) for line in index.read_text().splitlines()]
    pixels = np.load(folder / f"{part.name}.npy", mmap_mode="r")[: len(facts)]
    return pixels, ViewSet(
        kinds=tuple(f[0] for f in facts),
        concepts=tuple(tuple(f[1]) for f in facts),
        names=tuple(f[2] for f in facts),
        is_unseen=np.array([f[3] for f in facts], dtype=bool),
    )


def _share_of_views(of: tuple[DataSet, "ViewPart", int], share: int) -> list[TrainingView]:
    dataset, part, seed = of
    return list(part.views(dataset, seed + ROUND_SEEDS * part.round, share))


def most_views(dataset: DataSet) -> int:
    """An upper bound on what `training_views` yields, for progress bars."""
    total = 0
    for record in dataset.pictures:
        total += (record.kind == "picture" and record.split != "evaluation") * (1 + (record.source in EDGE_SOURCES))
        total += (record.source == "openmoji" and record.kind == "outline") * len(OUTLINE_STRENGTHS)
        total += record.source == "fluent-contrast" or record.source in ICON_SOURCES
    return total + sum(not d.validation for d in dataset.drawings) * len(DRAWING_STRENGTHS)


def most_wide_views(dataset: DataSet) -> int:
    """An upper bound on what `wide_views` yields."""
    total = 0
    for record in dataset.pictures:
        total += 2 * (record.kind == "clipart")
        total += (record.kind == "picture" and record.source in WIDE_EDGE_SOURCES) * 1
        total += (record.source == "openmoji" and record.kind == "outline") * len(WIDE_OUTLINE_STRENGTHS)
    return total + sum(not d.validation for d in dataset.drawings) * len(WIDE_DRAWING_STRENGTHS)


def wide_views(dataset: DataSet, seed: int, share: int | None = None) -> Iterator[TrainingView]:
    """More of what is drawn, and clip art: thousands of further things, each with its own edges as its sketch.

    Arguments as of `training_views`.
    """
    for record in dataset.pictures[share::SHARES] if share is not None else dataset.pictures:
        rng = np.random.default_rng([seed, 2, record.row])
        pixels = np.asarray(dataset.pixels[record.row])
        if record.kind == "clipart":
            lines = edge_lines(pixels, float(rng.uniform(1.6, 3.2)))
            if lines is not None:
                yield _clipart(record, "picture", _moved(canonical_image(pixels), rng))
                yield _clipart(record, "edges", _rendered(redraw(lines, rng, strength=float(rng.uniform(0.1, 0.8)))))
        elif record.kind == "picture" and record.source in WIDE_EDGE_SOURCES:
            lines = edge_lines(pixels, float(rng.uniform(1.6, 3.2)))
            if lines is not None:
                yield _view(record, "edges", _rendered(redraw(lines, rng, strength=float(rng.uniform(0.2, 0.9)))))
        elif record.source == "openmoji" and record.kind == "outline":
            strokes = trace_linework(pixels)
            for strength in WIDE_OUTLINE_STRENGTHS if strokes is not None else ():
                yield _view(record, "outline", _rendered(redraw(to_lines(strokes or []), rng, strength=strength)))
    for number, drawing in _drawings(dataset, share):
        yield from _of_drawing(drawing, np.random.default_rng([seed, 3, number]), WIDE_DRAWING_STRENGTHS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPart:
    """A part of the views, kept in files of its own, so that adding one leaves the others as they are.

    Attributes:
        name: of its files.
        views: makes them, by a seed, a share at a time.
        most: an upper bound on how many.
        round: further rounds show the same things in other ways.
    """

    name: str
    views: Callable[[DataSet, int, int], Iterator[TrainingView]]
    most: Callable[[DataSet], int]
    round: int = 0


def training_views(dataset: DataSet, seed: int, share: int | None = None) -> Iterator[TrainingView]:
    """Everything but validation drawings and the evaluation style, each augmented by its own seed.

    Args:
        dataset: the data set.
        seed: of the augmentation; the same seed gives the same views.
        share: of `SHARES`, which together are all; None for all at once.
    """
    for record in dataset.pictures[share::SHARES] if share is not None else dataset.pictures:
        yield from _of_picture(dataset, record, np.random.default_rng([seed, 0, record.row]))
    for number, drawing in _drawings(dataset, share):
        yield from _of_drawing(drawing, np.random.default_rng([seed, 1, number]), DRAWING_STRENGTHS)


def _drawings(dataset: DataSet, share: int | None) -> Iterator[tuple[int, DrawingRecord]]:
    """Drawings that training may see, with their numbers among all."""
    for number, drawing in enumerate(dataset.drawings):
        if not drawing.validation and (share is None or number % SHARES == share):
            yield number, drawing


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


def _of_drawing(drawing: DrawingRecord, rng: np.random.Generator, strengths: Sequence[float]) -> Iterator[TrainingView]:
    for strength in strengths:
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


def _clipart(record: PictureRecord, kind: Kind, pixels: NDArray[np.uint8]) -> TrainingView:
    """A thing of its own: file names of clip art say little."""
    return TrainingView(
        pixels=pixels, kind=kind, concepts=(f"clip:{record.row}",), name="", is_unseen=record.split == "unseen"
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


def view_parts(rounds: int = 1) -> tuple[ViewPart, ...]:
    """All parts of the views; every round redraws everything anew."""
    return tuple(
        ViewPart(name=name if number == 0 else f"{name}-{number}", views=views, most=most, round=number)
        for number in range(rounds)
        for name, views, most in (("views", training_views, most_views), ("wide", wide_views, most_wide_views))
    )
