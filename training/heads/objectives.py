"""Trains the U-head and the segmentation head on frozen features: what a sketch, a picture, a word and a pixel mean.

In two stages that share no trained weight. Pooled: sketches find pictures of the same thing and back; both find their
names. Dense: the cells of composed scenes find theirs, or the background; an object's cells together find its name
among all names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.expert import adapters_of
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import GridPool, Standardize, UHead
from training.heads.adapted import AdaptedCells
from training.heads.feature_store import EXPERT_CELLS, TAP_CELLS, MapReader
from training.heads.frozen import HeadData
from training.heads.losses import contrastive_loss, symmetric_contrastive_loss
from training.heads.pairs import NONE, PairSampler, collect_names, concept_numbers, sharing
from training.heads.scene_views import SceneViews
from training.heads.views import ViewSet
from training.loop import Schedule, fit
from training.steps import BatchLoss

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
WITHHELD_SHARE = 0.1
"""Share of present names that a scene is not asked for."""
LEAST_CELLS = 8
"""Objects that fill fewer cells do not count as regions."""
_NO_TARGET = -100


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
    """What is trained for `pooled`: the U-head's pool, the expert's adapters, and the scales of two losses' logits."""

    def __init__(self, uhead: UHead, adapters: nn.ModuleList | None = None) -> None:
        super().__init__()
        self.pool = uhead.pool
        self.adapters = adapters if adapters is not None else nn.ModuleList()
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
        device = stage.log_pair_scale.device
        names = collect_names(views, rows, vocabulary, embed)
        self._names = dataclasses.replace(
            names, embeddings=names.embeddings.to(device), stands_for=names.stands_for.to(device)
        )
        self._shown = concept_numbers(views.concepts, vocabulary).to(device)
        self._stage = stage
        self._cells = cells
        self._sampler = PairSampler(views, rows, shares)

    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """[2 `PAIRS`] rows: sketches, then their partners."""
        return (torch.from_numpy(np.concatenate(self._sampler.draw(PAIRS, generator))).to(self._shown.device),)

    def losses(self, both: torch.Tensor) -> dict[str, torch.Tensor]:
        """Two scalars: `pairs`, sketches and pictures that find each other, and `names`, both finding their names."""
        shown = self._shown[both]
        pooled = self._stage.pool(all_cells(self._cells.read(both)))
        pair_logits = self._stage.log_pair_scale.exp().clamp(max=100) * pooled[:PAIRS] @ pooled[PAIRS:].T
        name_logits = self._stage.log_name_scale.exp().clamp(max=100) * pooled @ self._names.embeddings.T
        return {
            "pairs": symmetric_contrastive_loss(pair_logits, sharing(shown[:PAIRS], shown[PAIRS:])),
            "names": TEXT_WEIGHT * contrastive_loss(name_logits, self._names.of(shown)),
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
    expert: nn.Module | None = None,
) -> None:
    """Trains the U-head's pool, or goes on training it, and leaves it with averaged weights.

    Args:
        uhead: its pool is trained in place; it must be of the kind `places`.
        data: views and the cells of their frozen maps.
        embed: names → [G, D] unit embeddings, as served.
        expert: an adapted one, whose adapters are trained with the pool; None for the frozen one's kept maps.
    """
    stage = PooledStage(uhead, adapters_of(expert) if expert is not None else None).to(data.device)
    cells = data.store if expert is None else AdaptedCells(expert, data)
    loss = PairLoss(stage, data.views, cells, embed, with_unseen=run.with_unseen, shares=course.shares)
    if isinstance(uhead.pool, GridPool):
        uhead.pool.cell_dropout, uhead.pool.dropout.p = course.place_dropout, course.fused_dropout
    _train(stage, loss, schedule, run, name="pooled", channel_dropout=CHANNEL_DROPOUT)


def train_dense(uhead: UHead, segmentation: SegmentationHead, data: HeadData, schedule: Schedule, run: Run) -> None:
    """The same for the dense path and the segmentation head, on composed scenes; the pool stays as it is.

    Args:
        data: scenes and their frozen maps; those of unseen classes are used only by release heads.
    """
    stage = DenseStage(uhead, segmentation).to(data.device)
    loss = DenseLoss(stage, data.scenes, data.scene_store, run.with_unseen)
    _train(stage, loss, schedule, run, name="dense", channel_dropout=DENSE_CHANNEL_DROPOUT)


def _train(
    stage: nn.Module,
    loss: "PairLoss | DenseLoss",
    schedule: Schedule,
    run: Run,
    *,
    name: str,
    channel_dropout: float,
) -> None:
    for part in stage.modules():
        if isinstance(part, Standardize):
            part.dropout.p = channel_dropout
    torch.manual_seed(run.seed)
    stage.to(memory_format=torch.channels_last)
    batches = BatchLoss(draw=loss.draw, losses=loss.losses)
    averaged = fit(stage, batches, schedule, folder=run.folder / name, seed=run.seed, progress=run.progress)
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


def measure_pool(uhead: UHead, views: MapReader) -> None:
    """Takes mean and deviation of every channel of the views' cells, for `pooled`."""
    if isinstance(uhead.pool, GridPool):
        uhead.pool.standard.measure(all_cells(views.read(_spread(views, STANDARD_VIEWS))))


def measure_dense(uhead: UHead, scenes: MapReader) -> None:
    """The same of the scenes' maps, for `dense`."""
    uhead.measure(*split_maps(scenes.read(_spread(scenes, STANDARD_SCENES))))


def _spread(maps: MapReader, count: int) -> torch.Tensor:
    rows = np.linspace(0, len(maps) - 1, min(len(maps), count)).astype(np.int64)
    return torch.from_numpy(rows).to(maps.device)


class DenseLoss:
    """What the cells of composed scenes are asked; unseen scenes and names only `with_unseen`."""

    def __init__(self, stage: DenseStage, scenes: SceneViews, maps: MapReader, with_unseen: bool) -> None:
        device = stage.segmentation.log_scale.device
        names = scenes.names(with_unseen)
        numbers = {name: number for number, name in enumerate(scenes.embeddings)}
        self._stage = stage
        self._scenes = scenes
        self._maps = maps
        self._with_unseen = with_unseen
        self._labels = torch.from_numpy(scenes.labels).to(device)
        self._present = concept_numbers(scenes.present, numbers).to(device)
        self._absent = concept_numbers(scenes.absent, numbers).to(device)
        self._embeddings = torch.stack(list(scenes.embeddings.values())).to(device)
        self._named = torch.tensor([numbers[name] for name in names], device=device)
        self._places = torch.full((len(numbers) + 1,), _NO_TARGET, device=device)
        self._places[self._named] = torch.arange(len(names), device=device)

    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """[`SCENES`] rows, and [`SCENES`, P] random numbers that withhold names."""
        rows = torch.from_numpy(self._scenes.draw(SCENES, self._with_unseen, generator))
        chances = torch.rand((SCENES, self._present.shape[1]), generator=generator)
        return rows.to(self._present.device), chances.to(self._present.device)

    def losses(self, rows: torch.Tensor, chances: torch.Tensor) -> dict[str, torch.Tensor]:
        """Two scalars.

        `dense`: cross-entropy of every cell over background and prompts, some present names withheld, absent ones
        among them. `regions`: cross-entropy of every object's mean cell over all names.
        """
        dense = self._stage.uhead.dense(*split_maps(self._maps.read(rows)))
        labels, present = self._labels[rows].long(), self._present[rows]
        kept = (chances >= WITHHELD_SHARE) & (present != NONE)
        kept[:, 0] |= ~kept.any(dim=1)
        prompts = torch.cat([present.masked_fill(~kept, NONE), self._absent[rows]], dim=1)
        logits = self._stage.segmentation.logits(dense, self._embeddings[prompts])
        logits[:, 1:].masked_fill_((prompts == NONE)[..., None, None], float("-inf"))
        is_asked = F.pad(kept, (1, 0), value=True).gather(1, labels.flatten(1)).view_as(labels)
        cells = F.cross_entropy(logits, labels * is_asked)
        return {"dense": DENSE_WEIGHT * cells, "regions": REGION_WEIGHT * self._regions(dense, labels, present)}

    def _regions(self, dense: torch.Tensor, labels: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the objects' mean directions over all names; those of few cells do not count."""
        numbers = torch.arange(1, present.shape[1] + 1, device=labels.device)
        masks = (labels.flatten(1)[:, None] == numbers[:, None]).float()
        sizes = masks.sum(dim=2)
        means = torch.einsum("bnp,bdp->bnd", masks, F.normalize(dense, dim=1).flatten(2))
        scale = self._stage.segmentation.log_scale.exp().clamp(max=100)
        logits = scale * F.normalize(means, dim=2) @ self._embeddings[self._named].T
        wanted = self._places[present].masked_fill(sizes < LEAST_CELLS, _NO_TARGET)
        total = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=_NO_TARGET, reduction="sum")
        return total / (wanted != _NO_TARGET).sum().clamp(min=1)
