"""Views for the dense stage: composed scenes as serving encodes them, with a label a cell.

A scene becomes two views, the whole image and a tile of it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.transforms import fit_square
from training.data.dataset import SIDE, DataSet
from training.data.scenes import (
    TRAINING_LAYOUT,
    Layout,
    Scene,
    ScenePool,
    build_pool,
    compose_training_scene,
    seen_training_pool,
)
from training.devices import in_processes
from training.loop import Progress

CELLS = 32  # along a side of the dense path's output
UNSEEN_SEED_OFFSET = 1_000_000
UNKNOWN = 255  # label of cells of which only the view's names are known
_GROUP = 100  # scenes a task


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneViews:
    """Labels and names of N scene views."""

    labels: NDArray[np.uint8]  # [N, 32, 32] uint8: 0 background, i + 1 the i-th present name, or `UNKNOWN`
    present: tuple[tuple[str, ...], ...]  # names of each view's scene
    absent: tuple[tuple[str, ...], ...]  # as many names that it does not show
    is_unseen: NDArray[np.bool_]  # [N] bool: scenes of unseen classes

    def __add__(self, other: "SceneViews") -> "SceneViews":
        """Both sets, one after the other."""
        return SceneViews(
            labels=np.concatenate([self.labels, other.labels]),
            present=self.present + other.present,
            absent=self.absent + other.absent,
            is_unseen=np.concatenate([self.is_unseen, other.is_unseen]),
        )

    def draw(self, count: int, with_unseen: bool, generator: torch.Generator) -> NDArray[np.int64]:
        """[count] row numbers, with replacement; unseen scenes only on request."""
        allowed = np.flatnonzero(~self.is_unseen) if not with_unseen else np.arange(len(self.is_unseen))
        drawn: NDArray[np.int64] = allowed[torch.randint(0, len(allowed), (count,), generator=generator).numpy()]
        return drawn

    def names(self, with_unseen: bool) -> tuple[str, ...]:
        """Every name that scenes show; those of unseen classes only on request."""
        shown = (n for n, is_unseen in zip(self.present, self.is_unseen, strict=True) if with_unseen or not is_unseen)
        return tuple(sorted({name for names in shown for name in names}))

    def prompts(self) -> list[str]:
        """Every name that some scene is asked for, shown or not."""
        return sorted({name for group in (*self.present, *self.absent) for name in group})


def build_scene_views(
    dataset: DataSet,
    folder: Path,
    *,
    seen: int,
    unseen: int,
    progress: Progress,
    workers: int = 1,
    side: int = SIDE,
    layout: Layout = TRAINING_LAYOUT,
) -> tuple[NDArray[np.uint8], SceneViews]:
    """Compose `seen` and `unseen` training scenes, two views each, or open what an earlier call finished.

    Returns:
        [N, side, side, 3] uint8 pixels, and what they show; the same for any number of `workers` (processes).
    """
    file, index = folder / "scenes.npz", folder / "scenes.json"
    if not index.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        frame = _Frame(side=side, layout=layout)
        views = list(_scene_views(dataset, frame, seen=seen, unseen=unseen, progress=progress, workers=workers))
        np.savez(
            file,
            pixels=np.stack([v[0] for v in views]),
            labels=np.stack([v[1] for v in views]),
            is_unseen=np.array([v[3] for v in views]),
        )
        # The index is written last: a folder without it is unfinished.
        index.write_text(json.dumps([v[2] for v in views]))
    arrays = np.load(file)
    names = json.loads(index.read_text())
    return arrays["pixels"], SceneViews(
        labels=arrays["labels"],
        is_unseen=arrays["is_unseen"],
        present=tuple(tuple(n[0]) for n in names),
        absent=tuple(tuple(n[1]) for n in names),
    )


_View = tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[tuple[str, ...], tuple[str, ...]], bool]
"""Pixels and cell labels of a view, its scene's present and absent names, and if they are of unseen classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """How scenes are composed and cut."""

    side: int  # of a view, px
    layout: Layout


def _scene_views(
    dataset: DataSet, frame: _Frame, *, seen: int, unseen: int, progress: Progress, workers: int
) -> Iterator[_View]:
    pools = {False: seen_training_pool(dataset)}
    if unseen:
        records = dataset.rows(lambda r: r.kind == "picture" and r.split == "unseen" and r.hexcode is not None)
        pools[True] = build_pool(dataset, records)
    scenes = [(False, index) for index in range(seen)] + [(True, index) for index in range(unseen)]
    groups = [scenes[start : start + _GROUP] for start in range(0, len(scenes), _GROUP)]
    for number, views in enumerate(in_processes(_composed, (pools, frame), groups, workers), 1):
        yield from views
        progress(min(number * _GROUP, len(scenes)), 0.0)


def _composed(of: tuple[Mapping[bool, ScenePool], _Frame], scenes: list[tuple[bool, int]]) -> list[_View]:
    pools, frame = of
    found: list[_View] = []
    for is_unseen, index in scenes:
        # Seen and unseen scenes never share a seed, so neither shows the other's layout.
        number = index + UNSEEN_SEED_OFFSET * is_unseen
        scene = compose_training_scene(pools[is_unseen], number, layout=frame.layout)
        found += [
            (*shown, (scene.present, scene.absent), is_unseen)
            for shown in (_whole(scene, frame.side), _tile(scene, frame.side, index))
        ]
    return found


def _whole(scene: Scene, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return fit_square(scene.pixels, side), cells_of(scene.labels)


def _tile(scene: Scene, side: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    top, left = np.random.default_rng(index).integers(0, scene.pixels.shape[0] - SIDE + 1, 2)
    cut = np.s_[top : top + SIDE, left : left + SIDE]  # what serving cuts, whatever the side of a view
    return fit_square(scene.pixels[cut], side), cells_of(scene.labels[cut])


def cells_of(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[S, S] labels → [32, 32]: the most frequent label of each cell."""
    block = labels.shape[0] // CELLS
    every = np.arange(int(labels.max()) + 1)[:, None, None]
    counts = (labels == every).reshape(-1, CELLS, block, CELLS, block).sum(axis=(2, 4))
    cells: NDArray[np.uint8] = counts.argmax(axis=0).astype(np.uint8)
    return cells
