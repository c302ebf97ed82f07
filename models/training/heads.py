"""Trains the U-head and the segmentation head on frozen features: what a sketch, a picture, a word and a pixel mean.

In two stages that share no trained weight. Pooled: sketches find pictures of the same thing and back; both find their
names. Dense: the cells of composed scenes find theirs, or the background; an object's cells together find its name
among all names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from models.heads.places import PlacesPool, Standard
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
from models.training.feature_store import EXPERT_CELLS, TAP_CELLS, MapReader
from models.training.frozen import HeadData
from models.training.loop import LossFunction, Schedule, fit
from models.training.losses import contrastive_loss, symmetric_contrastive_loss
from models.training.pairs import PairSampler, collect_names, concept_matrix, sharing
from models.training.scene_views import SceneViews
from models.training.views import ViewSet

PAIRS = 512
"""Drawings find pictures among so many: with 128, twice the steps reach half as far (docs/adr/0018)."""
SCENES = 24
STANDARD_VIEWS, STANDARD_SCENES = 4096, 256
"""Rows that means and deviations are measured on."""
DENSE_WEIGHT = 0.7
REGION_WEIGHT = 0.5
TEXT_WEIGHT = 0.5
CHANNEL_DROPOUT = 0.15
"""Share of channels that go missing for the pool: none is relied on alone."""
DENSE_CHANNEL_DROPOUT = 0.3
"""Share of a map's channels that go missing for the dense path."""
LEAST_CELLS = 8
"""Objects that fill fewer cells do not count as regions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How the pool learns.

    Attributes:
        steps: in all.
        rate: the learning rate's peak.
        place_dropout, fused_dropout: shares of places and of fused features that go missing.
        shares: of every kind of sketch among pairs.
    """

    steps: int
    rate: float
    place_dropout: float
    fused_dropout: float
    shares: Mapping[str, float]


_EVERY_KIND = {"drawing": 0.46, "outline": 0.26, "edges": 0.22, "icon": 0.06}
_MORE_DRAWINGS = {"drawing": 0.52, "outline": 0.28, "edges": 0.15, "icon": 0.05}
ZEROSHOT = Course(steps=350, rate=1.5e-3, place_dropout=0.2, fused_dropout=0.3, shares=_EVERY_KIND)
RELEASE = Course(steps=1200, rate=1.5e-3, place_dropout=0.2, fused_dropout=0.3, shares=_EVERY_KIND)
FINISH = Course(steps=900, rate=1e-3, place_dropout=0.0, fused_dropout=0.1, shares=_MORE_DRAWINGS)
"""For release heads that went through `RELEASE`: their words are all in training, so less need go missing."""


class PooledStage(nn.Module):
    """What is trained for `pooled`: the U-head's pool and the logit scales of the two contrastive losses."""

    def __init__(self, uhead: UHead) -> None:
        super().__init__()
        self.pool = uhead.pool
        self.log_pair_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.log_name_scale = nn.Parameter(torch.tensor(20.0).log())


class DenseStage(nn.Module):
    """What is trained for `dense`: all of the U-head that the pool does not read, and the segmentation head."""

    def __init__(self, uhead: UHead, segmentation: SegmentationHead) -> None:
        super().__init__()
        self.uhead = uhead
        self.segmentation = segmentation


class PairLoss:
    """What one batch of pairs asks of the pool.

    Args:
        stage: what is trained.
        views: all training views; `cells` holds what the pool reads of them, row by row.
        embed: names → [G, D] unit embeddings, as served.
        with_unseen: release heads (True) or zero-shot heads (False).
        shares: of every kind of sketch among pairs.
    """

    def __init__(
        self,
        stage: PooledStage,
        views: ViewSet,
        cells: MapReader,
        embed: Callable[[list[str]], torch.Tensor],
        *,
        with_unseen: bool,
        shares: Mapping[str, float],
    ) -> None:
        rows = np.arange(len(views.kinds)) if with_unseen else np.flatnonzero(~views.is_unseen)
        rows = rows[[views.concepts[row] != () for row in rows]]
        vocabulary = {
            code: number for number, code in enumerate(sorted({c for row in rows for c in views.concepts[row]}))
        }
        self._names = collect_names(views, rows, vocabulary, embed)
        self._shown = concept_matrix(views.concepts, vocabulary)
        self._stage = stage
        self._cells = cells
        self._sampler = PairSampler(views, rows, shares)

    def __call__(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Two scalars: `pairs`, sketches and pictures that find each other, and `names`, both finding their names."""
        sketches, partners = self._sampler.draw(PAIRS, generator)
        both = np.concatenate([sketches, partners])
        pooled = self._stage.pool(all_cells(self._cells.read(both)))
        pair_logits = self._stage.log_pair_scale.exp().clamp(max=100) * pooled[:PAIRS] @ pooled[PAIRS:].T
        name_logits = self._stage.log_name_scale.exp().clamp(max=100) * pooled @ self._names.embeddings.T
        same = sharing(self._shown[sketches], self._shown[partners])
        named = sharing(self._shown[both], self._names.concepts)
        return {
            "pairs": symmetric_contrastive_loss(pair_logits, same),
            "names": TEXT_WEIGHT * contrastive_loss(name_logits, named),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How both stages of one set of heads are trained.

    Attributes:
        with_unseen: release heads (True) or zero-shot heads (False).
        folder: of checkpoints and curves, one below it for each stage.
        seed: of batches and augmentation.
        progress: called with (step, loss) after each step.
    """

    with_unseen: bool
    folder: Path
    seed: int
    progress: Callable[[int, float], None]


def train_pooled(
    uhead: UHead,
    data: HeadData,
    embed: Callable[[list[str]], torch.Tensor],
    schedule: Schedule,
    run: Run,
    course: Course,
) -> None:
    """Trains the U-head's pool, or goes on training it, and leaves it with averaged weights.

    Args:
        uhead: its pool is trained in place; it must be of the kind `places`.
        data: views and the cells of their frozen maps.
        embed: names → [G, D] unit embeddings, as served.
    """
    stage = PooledStage(uhead)
    loss = PairLoss(stage, data.views, data.store, embed, with_unseen=run.with_unseen, shares=course.shares)
    if isinstance(uhead.pool, PlacesPool):
        uhead.pool.place_dropout, uhead.pool.dropout.p = course.place_dropout, course.fused_dropout
    _train(stage, loss, schedule, run, name="pooled", channel_dropout=CHANNEL_DROPOUT)


def train_dense(uhead: UHead, segmentation: SegmentationHead, data: HeadData, schedule: Schedule, run: Run) -> None:
    """The same for the dense path and the segmentation head, on composed scenes; the pool stays as it is.

    Args:
        data: scenes and their frozen maps; those of unseen classes are used only by release heads.
    """
    stage = DenseStage(uhead, segmentation)
    loss = DenseLoss(stage, data.scenes, data.scene_store, run.with_unseen)
    _train(stage, loss, schedule, run, name="dense", channel_dropout=DENSE_CHANNEL_DROPOUT)


def _train(
    stage: nn.Module, loss: LossFunction, schedule: Schedule, run: Run, *, name: str, channel_dropout: float
) -> None:
    for part in stage.modules():
        if isinstance(part, Standard):
            part.dropout.p = channel_dropout
    torch.manual_seed(run.seed)
    stage.to(memory_format=torch.channels_last)
    averaged = fit(stage, loss, schedule, folder=run.folder / name, seed=run.seed, progress=run.progress)
    stage.load_state_dict(averaged)
    stage.eval()


def split_maps(maps: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """A store's maps as the U-head takes them: taps by name, expert levels in order."""
    taps = {name.removeprefix("sd."): values for name, values in maps.items() if name.startswith("sd.")}
    levels = sorted(name for name in maps if name.startswith("expert."))
    return taps, [maps[name] for name in levels]


def all_cells(cells: dict[str, torch.Tensor]) -> torch.Tensor:
    """A store's cells as the U-head's pool takes them, [B, C, side, side]."""
    return torch.cat([cells[TAP_CELLS], cells[EXPERT_CELLS]], dim=1)


def measure_standards(uhead: UHead, views: MapReader, scenes: MapReader) -> None:
    """Mean and deviation of every channel: of the views' cells for `pooled`, of the scenes' maps for `dense`."""
    if isinstance(uhead.pool, PlacesPool):
        uhead.pool.standard.measure(all_cells(views.read(_spread(len(views), STANDARD_VIEWS))))
    uhead.measure(*split_maps(scenes.read(_spread(len(scenes), STANDARD_SCENES))))


def _spread(rows: int, count: int) -> NDArray[np.int64]:
    return np.linspace(0, rows - 1, min(rows, count)).astype(np.int64)


class DenseLoss:
    """What the cells of composed scenes are asked; unseen scenes and names only `with_unseen`."""

    def __init__(self, stage: DenseStage, scenes: SceneViews, maps: MapReader, with_unseen: bool) -> None:
        self._stage = stage
        self._scenes = scenes
        self._maps = maps
        self._with_unseen = with_unseen
        names = scenes.names(with_unseen)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._embeddings = torch.stack([scenes.embeddings[name] for name in names])

    def __call__(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Two scalars, from `SCENES` scenes.

        `dense`: cross-entropy of every cell over background and prompts, some present names withheld, absent ones
        among them. `regions`: cross-entropy of every object's mean cell over all names.
        """
        rows = self._scenes.draw(SCENES, self._with_unseen, generator)
        dense = self._stage.uhead.dense(*split_maps(self._maps.read(rows)))
        cells: torch.Tensor = dense.new_zeros(())
        regions: list[torch.Tensor] = []
        wanted: list[int] = []
        for row, features in zip(rows, dense, strict=True):
            prompts, targets = self._scenes.targets(int(row), generator)
            logits = self._stage.segmentation.logits(features[None], prompts)
            cells = cells + F.cross_entropy(logits, targets[None]) / len(rows)
            directions = F.normalize(features, dim=0).flatten(1)
            labels = torch.from_numpy(self._scenes.labels[row].astype(np.int64)).flatten()
            for label, name in enumerate(self._scenes.present[row], 1):
                mask = labels == label
                if int(mask.sum()) >= LEAST_CELLS:
                    regions.append(directions[:, mask].mean(dim=1))
                    wanted.append(self._numbers[name])
        named: torch.Tensor = dense.new_zeros(())
        if regions:
            scale = self._stage.segmentation.log_scale.exp().clamp(max=100)
            logits = scale * F.normalize(torch.stack(regions), dim=1) @ self._embeddings.T
            named = F.cross_entropy(logits, torch.tensor(wanted))
        return {"dense": DENSE_WEIGHT * cells, "regions": REGION_WEIGHT * named}
