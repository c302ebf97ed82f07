"""Training of one set of heads, from frozen maps to a bundle's heads/.

In two stages that share no trained weight: the pool, then the dense path with the segmentation head.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.bundle.pack import (
    ADAPTERS,
    MINI_DIMENSION,
    lite0_part,
    load_heads,
    mini_uhead_shape,
    save_adapters,
    save_heads,
)
from models.bundle.parts import load_adapters, load_expert
from models.errors import DataError
from models.expert import adapt, adapters_of
from models.heads.posteriors import ClassPosteriors, ExpertClassifier
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import GridPool, Standardize, UHead
from models.text import load_minilm
from training.devices import BatchLoss
from training.heads.dense import DenseLoss, DenseStage
from training.heads.feature_store import AdaptedCells, DeviceStore
from training.heads.frozen import FEATURES, Features, HeadData, ViewData, adapted_scenes
from training.heads.pooled import Embed, PairLoss, PooledStage
from training.heads.standards import measure_dense, measure_pool
from training.loop import Progress, Schedule, fit

CHANNEL_DROPOUT = 0.15  # share of channels that the pool misses in a step, so that it relies on none alone
DENSE_CHANNEL_DROPOUT = 0.3  # share of a map's channels that the dense path misses in a step
_RECORD = "training.json"

Joined = tuple[ClassPosteriors, ExpertClassifier]  # both are needed to train heads with posteriors


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Steps, rate, dropout and sampling of the pooled stage."""

    steps: int  # in all
    rate: float  # the learning rate's peak
    cell_dropout: float  # share of cells that are dropped
    fused_dropout: float  # share of fused features that are dropped
    shares: Mapping[str, float]  # of every kind of sketch among pairs
    memory: int = 0  # batches before the present one that pairs are also compared with


_EVERY_KIND = {"drawing": 0.46, "outline": 0.26, "edges": 0.22, "icon": 0.06}
_MORE_DRAWINGS = {"drawing": 0.52, "outline": 0.28, "edges": 0.15, "icon": 0.05}
ZEROSHOT = Course(steps=350, rate=1.5e-3, cell_dropout=0.2, fused_dropout=0.3, shares=_EVERY_KIND)
RELEASE = Course(steps=1200, rate=1.5e-3, cell_dropout=0.2, fused_dropout=0.3, shares=_EVERY_KIND)
FINISH = Course(steps=900, rate=1e-3, cell_dropout=0.0, fused_dropout=0.1, shares=_MORE_DRAWINGS)
"""For release heads after `RELEASE`: all their words are in training, so less needs to be dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPlan:
    """Heads to train, on which data and for how long."""

    release: bool = False  # on unseen classes and words too
    finish: bool = False  # continue from the bundle's own release heads, with next to no dropout
    adapt: bool = False  # the expert learns too
    features: Features = "fused"  # frozen maps that heads see; others are zero
    steps: int = 0  # of the pooled stage in all; 0 for the course's own
    dense_steps: int = 2400  # of the dense stage in all
    minutes: float = 60.0  # wall-clock budget of each stage
    seed: int = 0  # of initialization, batches and augmentation

    @property
    def course(self) -> Course:
        """Course of the pooled stage."""
        return FINISH if self.finish else RELEASE if self.release else ZEROSHOT

    @property
    def with_unseen(self) -> bool:
        """True for release heads."""
        return self.release or self.finish

    @property
    def pooled_steps(self) -> int:
        """Steps of the pooled stage in all."""
        return self.steps or self.course.steps

    @property
    def dense_steps_taken(self) -> int:
        """Steps of the dense stage in all; none to finish heads on a frozen expert, whose maps have not changed."""
        return 0 if self.finish and not self.adapt else self.dense_steps

    @property
    def folder(self) -> str:
        """Name of the folder of checkpoints."""
        parts = ["release" if self.with_unseen else "zeroshot", str(self.seed)]
        parts += [self.features] * (self.features != "fused") + ["adapted"] * self.adapt + ["finish"] * self.finish
        return "-".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRecord:
    """Record of a folder's heads, stored beside them."""

    features: Features  # frozen maps they saw; others were zero
    release: bool  # trained on unseen classes and words too
    seed: int  # of training
    steps: int  # planned; the curve shows how many were taken
    adapted: bool = False  # the expert learned with them

    def write(self, heads: Path) -> None:
        """Write `training.json` into a folder of heads."""
        (heads / _RECORD).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def read_record(heads: Path) -> HeadRecord:
    """Read `training.json` of a folder of heads.

    Raises:
        DataError: there is no record, or its features are unknown.
    """
    file = heads / _RECORD
    if not file.is_file():
        raise DataError(f"no {file}: run `vermouth train heads`")
    record = HeadRecord(**json.loads(file.read_text()))
    if record.features not in FEATURES:
        raise DataError(f"{file} names unknown features '{record.features}'")
    return record


def train_heads(bundle: Path, data: HeadData, plan: HeadPlan, runs: Path, progress: Progress) -> None:
    """Train a set of heads and write it into `bundle`/heads.

    Args:
        bundle: its folder; a new one holds nothing but heads afterwards.
        data: frozen maps, on the device that trains.
        plan: what to train.
        runs: folder of checkpoints and curves, one below it for each plan.
        progress: called with (step, loss), the steps of both stages counted together.

    Raises:
        DataError: the heads to continue from read an adapted expert, and the plan uses the frozen one.
    """
    data = data.only(plan.features)
    start = bundle if plan.finish else None
    torch.manual_seed(plan.seed)
    uhead, segmentation = UHead(mini_uhead_shape(), MINI_DIMENSION), SegmentationHead(MINI_DIMENSION)
    if start is None:
        measure_pool(uhead, data.store)
    else:
        if read_record(start / "heads").adapted and not plan.adapt:
            raise DataError(f"the heads in {start} were trained with an expert that learned: add --adapt")
        # Weights carry their own means and deviations, so nothing is measured.
        load_heads(uhead, segmentation, start / "heads")
    expert = _adapted_expert(start, data.device) if plan.adapt else None
    schedule = Schedule(
        steps=plan.pooled_steps,
        minutes=plan.minutes,
        learning_rate=plan.course.rate,
        ema=0.99,  # of hundreds of steps, where the prior takes thousands
        weight_decay=0.05,
    )
    folder = runs / plan.folder
    run = Run(schedule=schedule, with_unseen=plan.with_unseen, folder=folder, seed=plan.seed, progress=progress)
    embed = load_minilm().to(data.device).embeddings
    train_pooled(uhead, data, run, plan.course, embed=embed, expert=expert)
    if plan.dense_steps_taken:
        if expert is not None:
            data = dataclasses.replace(data, scene_store=adapted_scenes(expert, data))
        # An adapted expert has other means and deviations.
        if expert is not None or start is None:
            measure_dense(uhead, data.scene_store)
        run = dataclasses.replace(
            run,
            schedule=dataclasses.replace(schedule, steps=plan.dense_steps_taken),
            progress=lambda step, loss: progress(plan.pooled_steps + step, loss),
        )
        train_dense(uhead, segmentation, data, run)
    _save(bundle / "heads", uhead, segmentation, expert)
    record = HeadRecord(
        features=plan.features, release=plan.with_unseen, seed=plan.seed, steps=plan.pooled_steps, adapted=plan.adapt
    )
    record.write(bundle / "heads")


def _save(heads: Path, uhead: UHead, segmentation: SegmentationHead, expert: nn.Module | None) -> None:
    save_heads(uhead, segmentation, heads)
    # Adapters of earlier heads do not belong to these.
    (heads / ADAPTERS).unlink(missing_ok=True)
    if expert is not None:
        save_adapters(expert, heads / ADAPTERS)


def _adapted_expert(start: Path | None, device: torch.device) -> nn.Module:
    """The expert with new adapters, or with those of the bundle that training continues from."""
    expert = load_expert(lite0_part(), Path()).eval()
    if start is not None and (start / "heads" / ADAPTERS).is_file():
        load_adapters(expert, start / "heads" / ADAPTERS)
    else:
        adapt(expert)
    return expert.to(device).to(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Settings that both stages share."""

    schedule: Schedule  # length and rates
    with_unseen: bool  # release heads (True) or zero-shot heads (False)
    folder: Path  # of checkpoints and curves, one below it for each stage
    seed: int  # of batches and augmentation
    progress: Progress  # called with (step, loss)


def train_pooled(
    uhead: UHead,
    data: ViewData,
    run: Run,
    course: Course,
    *,
    embed: Embed,
    expert: nn.Module | None = None,
    joined: Joined | None = None,
) -> None:
    """Train the U-head's pool in place, or continue to, and leave it with averaged weights.

    Args:
        expert: an adapted one, trained with the pool; None for the frozen one's cached maps.
        joined: class posteriors, trained with the pool, and the expert's classifier.

    Raises:
        ValueError: an expert is to learn and the data hold no pixels.
    """
    posteriors, classifier = joined or (None, None)
    stage = PooledStage(uhead, adapters_of(expert) if expert is not None else None, posteriors).to(data.device)
    cells: DeviceStore | AdaptedCells = data.store
    if expert is not None:
        if data.pixels is None:
            raise ValueError("an expert learns from the views' pixels: pass with_pixels=True")
        cells = AdaptedCells(expert, data.store, data.pixels)
    loss = PairLoss(
        stage,
        data.views,
        cells,
        embed,
        with_unseen=run.with_unseen,
        shares=course.shares,
        classifier=classifier,
        memory=course.memory,
    )
    if isinstance(uhead.pool, GridPool):
        uhead.pool.cell_dropout, uhead.pool.dropout.p = course.cell_dropout, course.fused_dropout
    if posteriors is not None:
        posteriors.mixed[3].p = course.fused_dropout  # type: ignore[assignment]  # a module's number
    _train(stage, BatchLoss(draw=loss.draw, losses=loss.losses), run, name="pooled", channel_dropout=CHANNEL_DROPOUT)


def train_dense(
    uhead: UHead, segmentation: SegmentationHead, data: HeadData, run: Run, *, joined: Joined | None = None
) -> None:
    """Train the dense path and the segmentation head in place on composed scenes; the pool stays as it is."""
    stage = DenseStage(uhead, segmentation, joined).to(data.device)
    loss = DenseLoss(stage, data.scenes, data.scene_store, data.scene_names, with_unseen=run.with_unseen)
    batches = BatchLoss(draw=loss.draw, losses=loss.losses)
    _train(stage, batches, run, name="dense", channel_dropout=DENSE_CHANNEL_DROPOUT)


def _train(stage: nn.Module, loss: BatchLoss, run: Run, *, name: str, channel_dropout: float) -> None:
    for part in stage.modules():
        if isinstance(part, Standardize):
            part.dropout.p = channel_dropout
    # Seeds dropout; batches have the generator of `fit`.
    torch.manual_seed(run.seed)
    stage.to(memory_format=torch.channels_last)
    averaged = fit(stage, loss, run.schedule, folder=run.folder / name, seed=run.seed, progress=run.progress)
    stage.load_state_dict(averaged)
    stage.eval()
