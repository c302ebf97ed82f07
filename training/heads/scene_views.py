"""Composed scenes as the encoder sees them in serving: the whole picture, or a tile of it, with a label a cell."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.transforms import fit_square
from training.data.dataset import DataSet
from training.data.render import SIDE
from training.data.scenes import Scene, ScenePool, build_pool, compose_training_scene, seen_training_pool
from training.workers import in_processes

CELLS = 32
UNSEEN_SEED_OFFSET = 1_000_000
_GROUP = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneViews:
    """Scenes whose maps a store holds, row by row.

    Attributes:
        labels: [N, 32, 32] uint8: 0 background, i + 1 the i-th present name.
        present, absent: names of each view's scene.
        is_unseen: [N] bool: scenes of unseen classes.
        embeddings: name → [D] unit embedding.
    """

    labels: NDArray[np.uint8]
    present: tuple[tuple[str, ...], ...]
    absent: tuple[tuple[str, ...], ...]
    is_unseen: NDArray[np.bool_]
    embeddings: dict[str, torch.Tensor]

    def draw(self, count: int, with_unseen: bool, generator: torch.Generator) -> NDArray[np.int64]:
        """`count` row numbers, unseen scenes among them only on request."""
        allowed = np.flatnonzero(~self.is_unseen) if not with_unseen else np.arange(len(self.is_unseen))
        drawn: NDArray[np.int64] = allowed[torch.randint(0, len(allowed), (count,), generator=generator).numpy()]
        return drawn

    def names(self, with_unseen: bool) -> tuple[str, ...]:
        """Every name that scenes show, those of unseen classes only on request."""
        shown = (n for n, is_unseen in zip(self.present, self.is_unseen, strict=True) if with_unseen or not is_unseen)
        return tuple(sorted({name for names in shown for name in names}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenePixels:
    """Scene views before encoding; fields as in `SceneViews`, pixels [N, 128, 128, 3] uint8."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    present: tuple[tuple[str, ...], ...]
    absent: tuple[tuple[str, ...], ...]
    is_unseen: NDArray[np.bool_]


def build_scene_pixels(
    dataset: DataSet,
    folder: Path,
    *,
    seen: int,
    unseen: int,
    progress: Callable[[int, float], None],
    workers: int = 1,
) -> ScenePixels:
    """Composes `seen` and `unseen` training scenes, two views each, or opens what an earlier call finished.

    Args:
        workers: processes; the scenes are the same whatever their number.
    """
    file, index = folder / "scenes.npz", folder / "scenes.json"
    if not index.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        views = list(_scene_views(dataset, seen, unseen, progress, workers))
        np.savez(
            file,
            pixels=np.stack([v[0] for v in views]),
            labels=np.stack([v[1] for v in views]),
            is_unseen=np.array([v[3] for v in views]),
        )
        index.write_text(json.dumps([v[2] for v in views]))
    arrays = np.load(file)
    names = json.loads(index.read_text())
    return ScenePixels(
        pixels=arrays["pixels"],
        labels=arrays["labels"],
        is_unseen=arrays["is_unseen"],
        present=tuple(tuple(n[0]) for n in names),
        absent=tuple(tuple(n[1]) for n in names),
    )


_View = tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[tuple[str, ...], tuple[str, ...]], bool]
"""Pixels and cell labels of a view, its scene's present and absent names, whether of unseen classes."""


def _scene_views(
    dataset: DataSet, seen: int, unseen: int, progress: Callable[[int, float], None], workers: int
) -> Iterator[_View]:
    pools = {False: seen_training_pool(dataset)}
    if unseen:
        records = dataset.rows(lambda r: r.kind == "picture" and r.split == "unseen" and r.hexcode is not None)
        pools[True] = build_pool(dataset, records)
    scenes = [(False, index) for index in range(seen)] + [(True, index) for index in range(unseen)]
    groups = [scenes[start : start + _GROUP] for start in range(0, len(scenes), _GROUP)]
    for number, views in enumerate(in_processes(_composed, pools, groups, workers), 1):
        yield from views
        progress(min(number * _GROUP, len(scenes)), 0.0)


def _composed(pools: Mapping[bool, ScenePool], scenes: list[tuple[bool, int]]) -> list[_View]:
    found: list[_View] = []
    for is_unseen, index in scenes:
        scene = compose_training_scene(pools[is_unseen], index + UNSEEN_SEED_OFFSET * is_unseen)
        found += [(*shown, (scene.present, scene.absent), is_unseen) for shown in (_whole(scene), _tile(scene, index))]
    return found


def _whole(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return fit_square(scene.pixels, SIDE), _cells(scene.labels)


def _tile(scene: Scene, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    top, left = np.random.default_rng(index).integers(0, scene.pixels.shape[0] - SIDE + 1, 2)
    cut = np.s_[top : top + SIDE, left : left + SIDE]
    return np.ascontiguousarray(scene.pixels[cut]), _cells(scene.labels[cut])


def _cells(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[S, S] labels → [32, 32]: the most frequent one of each cell."""
    block = labels.shape[0] // CELLS
    counts = np.stack(
        [
            (labels == label).reshape(CELLS, block, CELLS, block).sum(axis=(1, 3))
            for label in range(int(labels.max()) + 1)
        ]
    )
    cells: NDArray[np.uint8] = counts.argmax(axis=0).astype(np.uint8)
    return cells
