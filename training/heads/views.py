"""The inputs that heads are trained on: images, sketches made from them, drawings, and what each shows."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.sketch.linework import trace_linework
from models.transforms import canonical_image, canonical_strokes, fit_square
from training.data.dataset import SIDE, DataSet, DrawingRecord, ImageRecord
from training.data.photographs import Archive, ImageFiles, NamedImage
from training.devices import in_processes
from training.heads.augment import Lines, edge_lines, redraw, to_lines, to_strokes
from training.loop import Progress

Kind = Literal["picture", "outline", "edges", "drawing", "icon", "photograph", "sketch"]

OUTLINE_STRENGTHS, DRAWING_STRENGTHS = (0.0, 0.5, 0.8, 1.0), (0.0, 0.6)  # of `redraw`; 0 leaves the original
WIDE_OUTLINE_STRENGTHS, WIDE_DRAWING_STRENGTHS = (0.4, 0.7, 1.0), (0.45, 0.8)
EDGE_SOURCES, WIDE_EDGE_SOURCES = ("noto", "fluent"), ("openmoji", "twemoji")  # each style's edges are drawn once
ICON_SOURCES = ("phosphor-regular", "phosphor-fill")
SHARES = 64  # tasks that the views of a part are divided into
_ROUND_SEEDS = 1_000  # between the seeds of two rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingView:
    """One encoder input and what it shows."""

    pixels: NDArray[np.uint8]  # [side, side, 3] uint8 RGB, canonical
    kind: Kind  # where it comes from; all but `picture` and `photograph` are sketches
    concepts: tuple[str, ...]  # OpenMoji hexcodes, or one code of its own for a word, an icon or clip art without emoji
    name: str  # what it is called; empty for clip art, whose file names are unreliable, and for mere backgrounds
    is_unseen: bool  # zero-shot heads must not see it


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSet:
    """Kinds, concepts and names of N views, see `TrainingView`."""

    kinds: tuple[str, ...]
    concepts: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    is_unseen: NDArray[np.bool_]  # [N] bool

    def __add__(self, other: "ViewSet") -> "ViewSet":
        """Both sets, one after the other."""
        return ViewSet(
            kinds=self.kinds + other.kinds,
            concepts=self.concepts + other.concepts,
            names=self.names + other.names,
            is_unseen=np.concatenate([self.is_unseen, other.is_unseen]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPart:
    """A part of the views in files of its own, so that adding one leaves the others as they are."""

    name: str  # of its files
    views: Callable[[DataSet, int, int | None, int], Iterator[TrainingView]]  # dataset, seed, share and side → views
    most: Callable[[DataSet], int]  # upper bound on their number
    round: int = 0  # further rounds show the same things in other ways
    side: int = SIDE  # of a view, px


def view_parts(rounds: int = 1, side: int = SIDE) -> tuple[ViewPart, ...]:
    """All parts of the views made from the data set; every round redraws everything."""
    at = "" if side == SIDE else f"-at-{side}"
    return tuple(
        ViewPart(name=f"{name}{f'-{number}' * (number > 0)}{at}", views=views, most=most_views, round=number, side=side)
        for number in range(rounds)
        for name, views in (("views", training_views), ("wide", wide_views))
    )


def photograph_parts(photographs: ImageFiles, sketches: ImageFiles, side: int) -> tuple[ViewPart, ...]:
    """Parts of the photographs and of the sketches of TU-Berlin, those of validation left out."""

    def part(name: str, kind: Literal["photograph", "sketch"], files: ImageFiles) -> ViewPart:
        chosen = [image for image in files.images if not image.is_validation]

        def views(_dataset: DataSet, _seed: int, share: int | None, side: int) -> Iterator[TrainingView]:
            return file_views(files.archive, chosen, kind, share, side=side)

        most = len(chosen)
        return ViewPart(name=f"{name}-at-{side}", views=views, most=lambda _: most, side=side)

    return part("photographs", "photograph", photographs), part("sketches", "sketch", sketches)


def build_views(
    dataset: DataSet,
    part: ViewPart,
    folder: Path,
    *,
    seed: int,
    progress: Progress,
    workers: int = 1,
    shares: int = SHARES,
) -> tuple[NDArray[np.uint8], ViewSet]:
    """Draw the first `shares` of the views of one part into `folder`; shares that an earlier call drew are opened.

    Returns:
        [N, side, side, 3] uint8, memory-mapped, and what they show; the same for any number of `workers` (processes).
    """
    index, file = folder / f"{part.name}.shares.jsonl", folder / f"{part.name}.npy"
    drawn = _drawn_shares(index)
    if len(drawn) < shares:
        folder.mkdir(parents=True, exist_ok=True)
        rows = sum(map(len, drawn))
        # Rows that no view fills take no space: the file is sparse.
        shape = (part.most(dataset), part.side, part.side, 3)
        pixels = np.lib.format.open_memmap(file, mode="r+" if drawn else "w+", dtype=np.uint8, shape=shape)
        index.write_text("".join(json.dumps(share) + "\n" for share in drawn))  # without a last line cut off
        todo = range(len(drawn), shares)
        for views in in_processes(_share_of_views, (dataset, part, seed), todo, workers):
            for row, view in enumerate(views, rows):
                pixels[row] = view.pixels
            rows += len(views)
            pixels.flush()
            # A share's line is written after its pixels: without it the share is drawn again.
            with index.open("a") as lines:
                lines.write(json.dumps([[v.kind, v.concepts, v.name, v.is_unseen] for v in views]) + "\n")
            progress(rows, 0.0)
        drawn = _drawn_shares(index)
    shown = [view for share in drawn[:shares] for view in share]
    kinds, concepts, names, is_unseen = zip(*shown, strict=True) if shown else ((), (), (), ())
    return np.load(file, mmap_mode="r")[: len(shown)], ViewSet(
        kinds=kinds, concepts=tuple(map(tuple, concepts)), names=names, is_unseen=np.array(is_unseen, dtype=bool)
    )


def _drawn_shares(index: Path) -> list[list[Any]]:
    """What the views of each finished share show, in order."""
    if not index.is_file():
        return []
    lines = index.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _share_of_views(of: tuple[DataSet, ViewPart, int], share: int) -> list[TrainingView]:
    dataset, part, seed = of
    return list(part.views(dataset, seed + _ROUND_SEEDS * part.round, share, part.side))


def file_views(
    archive: Archive, images: Sequence[NamedImage], kind: Kind, share: int | None = None, *, side: int
) -> Iterator[TrainingView]:
    """Yield files as the service sees them: photographs as they are, sketches in their canonical form.

    Their concepts follow from their names when heads are trained, see `training.heads.frozen`.
    """
    for image in images[share::SHARES] if share is not None else images:
        pixels = archive.pixels(image.file)
        form = fit_square if kind == "photograph" else canonical_image
        yield TrainingView(
            pixels=form(pixels, side), kind=kind, concepts=(), name=image.name, is_unseen=image.is_unseen
        )


def training_views(dataset: DataSet, seed: int, share: int | None = None, side: int = SIDE) -> Iterator[TrainingView]:
    """Yield views of everything but clip art, validation drawings and the evaluation style.

    Args:
        seed: of the augmentation. Every image has a generator of its own, so shares do not depend on each other.
        share: of `SHARES`, which together are all; None for all at once.
        side: of a view, px.
    """
    for record in dataset.images[share::SHARES] if share is not None else dataset.images:
        if record.split != "evaluation":
            yield from _of_image(dataset, record, np.random.default_rng([seed, 0, record.row]), side)
    for number, drawing in _drawings(dataset, share):
        yield from _of_drawing(drawing, np.random.default_rng([seed, 1, number]), DRAWING_STRENGTHS, side)


def wide_views(dataset: DataSet, seed: int, share: int | None = None, side: int = SIDE) -> Iterator[TrainingView]:
    """Yield more of what is drawn, and clip art: thousands of further things, each with its edges as its sketch.

    Arguments as of `training_views`.
    """
    for record in dataset.images[share::SHARES] if share is not None else dataset.images:
        yield from _wide_of_image(dataset, record, np.random.default_rng([seed, 2, record.row]), side)
    for number, drawing in _drawings(dataset, share):
        yield from _of_drawing(drawing, np.random.default_rng([seed, 3, number]), WIDE_DRAWING_STRENGTHS, side)


def most_views(dataset: DataSet) -> int:
    """An upper bound on the number of `training_views` and of `wide_views`: an outline makes most."""
    return len(OUTLINE_STRENGTHS) * len(dataset.images) + len(DRAWING_STRENGTHS) * len(dataset.drawings)


def _of_image(dataset: DataSet, record: ImageRecord, rng: np.random.Generator, side: int) -> Iterator[TrainingView]:
    pixels = np.asarray(dataset.pixels[record.row])
    if record.kind == "picture":
        # Arguments draw from `rng` too: their order belongs to the result.
        yield _view(record, "picture", _moved(canonical_image(pixels, side), rng))
        lines = _edges(pixels, rng) if record.source in EDGE_SOURCES else None
        if lines is not None:
            yield _view(record, "edges", _redrawn(lines, rng, float(rng.uniform(0.2, 0.9)), side))
    elif record.source == "openmoji":
        strokes = trace_linework(pixels)
        if strokes is None:  # filled, not linework
            yield _view(record, "outline", canonical_image(pixels, side))
            return
        for strength in OUTLINE_STRENGTHS:
            yield _view(record, "outline", _redrawn(to_lines(strokes), rng, strength, side))
    elif record.source == "fluent-contrast":
        yield _view(record, "outline", canonical_image(pixels, side))
    elif record.source in ICON_SOURCES:
        yield _view(record, "icon", canonical_image(pixels, side))


def _wide_of_image(
    dataset: DataSet, record: ImageRecord, rng: np.random.Generator, side: int
) -> Iterator[TrainingView]:
    pixels = np.asarray(dataset.pixels[record.row])
    is_clipart = record.kind == "clipart"
    if is_clipart or (record.kind == "picture" and record.source in WIDE_EDGE_SOURCES):
        lines = _edges(pixels, rng)
        if lines is None:
            return
        if is_clipart:
            yield _view(record, "picture", _moved(canonical_image(pixels, side), rng))
        strengths = (0.1, 0.8) if is_clipart else (0.2, 0.9)
        yield _view(record, "edges", _redrawn(lines, rng, float(rng.uniform(*strengths)), side))
    elif record.source == "openmoji" and record.kind == "outline":
        strokes = trace_linework(pixels)
        if strokes is not None:
            for strength in WIDE_OUTLINE_STRENGTHS:
                yield _view(record, "outline", _redrawn(to_lines(strokes), rng, strength, side))


def _drawings(dataset: DataSet, share: int | None) -> Iterator[tuple[int, DrawingRecord]]:
    """Drawings that training may see, with their numbers among all."""
    for number, drawing in enumerate(dataset.drawings):
        if not drawing.validation and (share is None or number % SHARES == share):
            yield number, drawing


def _of_drawing(
    drawing: DrawingRecord, rng: np.random.Generator, strengths: Sequence[float], side: int
) -> Iterator[TrainingView]:
    for strength in strengths:
        yield TrainingView(
            pixels=_redrawn(to_lines(drawing.strokes), rng, strength, side),
            kind="drawing",
            concepts=drawing.hexcodes or (f"word:{drawing.word}",),
            name=drawing.word,
            is_unseen=drawing.split == "unseen",
        )


def _view(record: ImageRecord, kind: Kind, pixels: NDArray[np.uint8]) -> TrainingView:
    is_clipart = record.kind == "clipart"
    return TrainingView(
        pixels=pixels,
        kind=kind,
        concepts=(f"clip:{record.row}" if is_clipart else record.hexcode or f"icon:{record.name}",),
        name="" if is_clipart else record.name,
        is_unseen=record.split == "unseen",
    )


def _edges(pixels: NDArray[np.uint8], rng: np.random.Generator) -> Lines | None:
    return edge_lines(pixels, float(rng.uniform(1.6, 3.2)))


def _redrawn(lines: Lines, rng: np.random.Generator, strength: float, side: int) -> NDArray[np.uint8]:
    return canonical_strokes(to_strokes(redraw(lines, rng, strength=strength)), side)


def _moved(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Half of the images smaller, off-centre and perhaps mirrored, on white."""
    if rng.random() < 0.5:
        return pixels
    side = pixels.shape[0]
    small = fit_square(pixels, int(side * rng.uniform(0.7, 1.0)))
    out = np.full_like(pixels, 255)
    top, left = (int(v) for v in rng.integers(0, side - small.shape[0] + 1, 2))
    out[top : top + small.shape[0], left : left + small.shape[0]] = small
    return out[:, ::-1] if rng.random() < 0.5 else out
