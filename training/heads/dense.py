"""The dense stage: composed scenes as serving encodes them, and what the dense path learns from them.

A scene becomes two views, the whole image and a tile of it, with a label a cell. The cells of a scene are matched
with its names or the background, and an object's cells together with its name among all names.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from models.heads.posteriors import ClassPosteriors, ExpertClassifier
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
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
from training.heads.feature_store import DeviceStore
from training.heads.pooled import NONE, concept_numbers
from training.loop import Progress

CELLS = 32  # along a side of the dense path's output
UNSEEN_SEED_OFFSET = 1_000_000
SCENES = 24  # scene views a step
DENSE_WEIGHT, REGION_WEIGHT = 0.7, 0.5
WITHHELD_SHARE = 0.1  # share of present names that a scene is not asked for
LEAST_CELLS = 8  # objects that fill fewer cells do not count as regions
_NO_TARGET = -100
_GROUP = 100  # scenes a task


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneViews:
    """Labels and names of N scene views."""

    labels: NDArray[np.uint8]  # [N, 32, 32] uint8: 0 background, i + 1 the i-th present name
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
    top, left = np.random.default_rng(index).integers(0, scene.pixels.shape[0] - side + 1, 2)
    cut = np.s_[top : top + side, left : left + side]
    return np.ascontiguousarray(scene.pixels[cut]), cells_of(scene.labels[cut])


def cells_of(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[S, S] labels → [32, 32]: the most frequent label of each cell."""
    block = labels.shape[0] // CELLS
    every = np.arange(int(labels.max()) + 1)[:, None, None]
    counts = (labels == every).reshape(-1, CELLS, block, CELLS, block).sum(axis=(2, 4))
    cells: NDArray[np.uint8] = counts.argmax(axis=0).astype(np.uint8)
    return cells


class DenseStage(nn.Module):
    """Modules trained for `dense`: all of the U-head that the pool does not read, and the segmentation head.

    Of class posteriors only their weight in the dense map is trained.
    """

    def __init__(
        self,
        uhead: UHead,
        segmentation: SegmentationHead,
        joined: tuple[ClassPosteriors, ExpertClassifier] | None = None,
    ) -> None:
        super().__init__()
        self.uhead = uhead
        self.segmentation = segmentation
        self.weights = nn.ParameterList([joined[0].dense_weight] if joined else [])
        self._joined = joined  # in a tuple, so that its other weights are no weights of this module

    def dense(self, maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns `dense` of a store's maps, [B, D, h, w]."""
        taps, levels = split_maps(maps)
        dense = self.uhead.dense(taps, levels)
        if self._joined is None:
            return dense
        posteriors, classifier = self._joined
        with torch.no_grad():
            features = classifier.features(levels[-1])
            logits = classifier.logits(features.permute(0, 2, 3, 1).flatten(0, 2))
        return posteriors.dense(dense, features, logits)


class DenseLoss:
    """Losses of the cells of composed scenes.

    Args:
        stage: on the device that trains.
        scenes: N views.
        maps: their frozen maps, row by row.
        embeddings: name → [D] unit embedding of every prompt.
        with_unseen: also unseen scenes and names, for release heads.
    """

    def __init__(
        self,
        stage: DenseStage,
        scenes: SceneViews,
        maps: DeviceStore,
        embeddings: Mapping[str, torch.Tensor],
        *,
        with_unseen: bool,
    ) -> None:
        device = stage.segmentation.log_scale.device
        names = scenes.names(with_unseen)
        numbers = {name: number for number, name in enumerate(embeddings)}
        self._stage = stage
        self._scenes = scenes
        self._maps = maps
        self._with_unseen = with_unseen
        self._labels = torch.from_numpy(scenes.labels).to(device)
        self._present = concept_numbers(scenes.present, numbers).to(device)
        self._absent = concept_numbers(scenes.absent, numbers).to(device)
        self._embeddings = torch.stack(list(embeddings.values())).to(device)
        self._named = torch.tensor([numbers[name] for name in names], device=device)
        # The last entry answers for NONE, which indexes from the end.
        self._targets = torch.full((len(numbers) + 1,), _NO_TARGET, device=device)
        self._targets[self._named] = torch.arange(len(names), device=device)

    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """[`SCENES`] rows, and [`SCENES`, P] random numbers that withhold names."""
        rows = torch.from_numpy(self._scenes.draw(SCENES, self._with_unseen, generator))
        chances = torch.rand((SCENES, self._present.shape[1]), generator=generator)
        return rows.to(self._present.device), chances.to(self._present.device)

    def losses(self, rows: torch.Tensor, chances: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns two scalars.

        `dense`: cross-entropy of every cell over background and prompts, with some present names withheld and absent
        ones added. `regions`: cross-entropy of every object's mean cell over all names.
        """
        dense = self._stage.dense(self._maps.read(rows))
        labels, present = self._labels[rows].long(), self._present[rows]
        is_asked = (chances >= WITHHELD_SHARE) & (present != NONE)
        is_asked[:, 0] |= ~is_asked.any(dim=1)  # at least one name
        prompts = torch.cat([present.masked_fill(~is_asked, NONE), self._absent[rows]], dim=1)
        logits = self._stage.segmentation.logits(dense, self._embeddings[prompts])
        # Prompts that fill up a row can win no cell.
        logits[:, 1:].masked_fill_((prompts == NONE)[..., None, None], float("-inf"))
        # Cells of a withheld name count as background.
        counts = F.pad(is_asked, (1, 0), value=True).gather(1, labels.flatten(1)).view_as(labels)
        cells = F.cross_entropy(logits, labels * counts)
        return {"dense": DENSE_WEIGHT * cells, "regions": REGION_WEIGHT * self._regions(dense, labels, present)}

    def _regions(self, dense: torch.Tensor, labels: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the objects' mean directions over all names, without objects of few cells."""
        numbers = torch.arange(1, present.shape[1] + 1, device=labels.device)
        masks = (labels.flatten(1)[:, None] == numbers[:, None]).float()
        sizes = masks.sum(dim=2)
        means = torch.einsum("bnp,bdp->bnd", masks, F.normalize(dense, dim=1).flatten(2))
        scale = self._stage.segmentation.log_scale.exp().clamp(max=100)
        logits = scale * F.normalize(means, dim=2) @ self._embeddings[self._named].T
        wanted = self._targets[present].masked_fill(sizes < LEAST_CELLS, _NO_TARGET)
        total = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=_NO_TARGET, reduction="sum")
        return total / (wanted != _NO_TARGET).sum().clamp(min=1)


def split_maps(maps: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """A store's maps as the U-head takes them: taps by name, expert levels in order."""
    taps = {name.removeprefix("sd."): values for name, values in maps.items() if name.startswith("sd.")}
    levels = sorted(name for name in maps if name.startswith("expert."))
    return taps, [maps[name] for name in levels]
