"""How one set of heads comes about, from frozen maps to a bundle's heads/."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.bundle.build import load_adapters, load_expert
from models.bundle.pack import (
    ADAPTERS,
    MINI_DIMENSION,
    lite0_part,
    load_heads,
    mini_uhead_shape,
    save_adapters,
    save_heads,
)
from models.errors import DataError
from models.expert import adapt
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
from models.text import load_minilm
from training.heads.ablation import Features, HeadRecord, only, read_record, write_record
from training.heads.adapted import adapted_scenes
from training.heads.frozen import HeadData
from training.heads.objectives import (
    FINISH,
    RELEASE,
    ZEROSHOT,
    Course,
    Run,
    measure_dense,
    measure_pool,
    train_dense,
    train_pooled,
)
from training.loop import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPlan:
    """What to train, and for how long.

    Attributes:
        release: on unseen classes and words too.
        finish: goes on from the bundle's own release heads, with next to no dropout; the pooled stage alone, unless
            the expert learns with it, whose maps the dense stage reads.
        start: bundle whose heads training starts from.
        adapt: whether the expert learns too.
        features: frozen maps that heads see; others are zero.
        steps: of the pooled stage in all; 0 for the course's own.
        dense_steps: of the dense stage in all.
        minutes: wall-clock budget of each stage.
        seed: of initialisation, batches and augmentation.
    """

    release: bool = False
    finish: bool = False
    start: Path | None = None
    adapt: bool = False
    features: Features = "fused"
    steps: int = 0
    dense_steps: int = 2400
    minutes: float = 60.0
    seed: int = 0

    @property
    def course(self) -> Course:
        """How the pool learns."""
        return FINISH if self.finish else RELEASE if self.release else ZEROSHOT

    @property
    def pooled_steps(self) -> int:
        """Of the pooled stage in all."""
        return self.steps or self.course.steps

    @property
    def dense_steps_taken(self) -> int:
        """Of the dense stage; none to finish heads on a frozen expert."""
        return 0 if self.finish and not self.adapt else self.dense_steps

    @property
    def folder(self) -> str:
        """Name of the folder of checkpoints."""
        parts = ["release" if self.release or self.finish else "zeroshot", str(self.seed)]
        parts += [self.features] * (self.features != "fused") + ["adapted"] * self.adapt + ["finish"] * self.finish
        return "-".join(parts)


def train_heads(
    bundle: Path, data: HeadData, plan: HeadPlan, runs: Path, progress: Callable[[int, float], None]
) -> None:
    """Trains a set of heads and writes it into `bundle`/heads.

    Args:
        bundle: its folder; holds nothing but heads afterwards if it is new.
        data: frozen maps, on the device that trains.
        plan: what to train.
        runs: folder of checkpoints and curves, one below it for each plan.
        progress: called with (step, loss), the steps of both stages counted together.

    Raises:
        DataError: training would go on from heads of an adapted expert on the frozen one's maps.
    """
    data = only(data, plan.features)
    start = bundle if plan.finish else plan.start
    torch.manual_seed(plan.seed)
    uhead, segmentation = UHead(mini_uhead_shape(), MINI_DIMENSION), SegmentationHead(MINI_DIMENSION)
    if start is None:
        measure_pool(uhead, data.store)
    else:
        if read_record(start / "heads").adapted and not plan.adapt:
            raise DataError(f"the heads in {start} were trained with an expert that learnt: add --adapt")
        load_heads(uhead, segmentation, start / "heads")
    expert = _adapted_expert(start, data.device) if plan.adapt else None
    schedule = Schedule(
        steps=plan.pooled_steps,
        minutes=plan.minutes,
        learning_rate=plan.course.rate,
        decay=True,
        ema=0.99,
        weight_decay=0.05,
    )
    with_unseen = plan.release or plan.finish
    run = Run(with_unseen=with_unseen, folder=runs / plan.folder, seed=plan.seed, progress=progress)
    embed = load_minilm().to(data.device).embeddings
    train_pooled(uhead, data, embed, schedule, run, plan.course, expert)
    heads = bundle / "heads"
    if plan.dense_steps_taken:
        if expert is not None:
            data = dataclasses.replace(data, scene_store=adapted_scenes(expert, data))
        if expert is not None or start is None:
            measure_dense(uhead, data.scene_store)
        counted = dataclasses.replace(run, progress=lambda step, loss: progress(plan.pooled_steps + step, loss))
        train_dense(uhead, segmentation, data, dataclasses.replace(schedule, steps=plan.dense_steps_taken), counted)
    save_heads(uhead, segmentation, heads)
    # Adapters that earlier heads came with are not these heads'.
    (heads / ADAPTERS).unlink(missing_ok=True)
    if expert is not None:
        save_adapters(expert, heads / ADAPTERS)
    write_record(
        heads,
        HeadRecord(
            features=plan.features, release=with_unseen, seed=plan.seed, steps=plan.pooled_steps, adapted=plan.adapt
        ),
    )


def _adapted_expert(start: Path | None, device: torch.device) -> nn.Module:
    """The expert with new adapters, or with those of a bundle that training goes on from."""
    expert = load_expert(lite0_part(), Path()).eval()
    if start is not None and (start / "heads" / ADAPTERS).is_file():
        load_adapters(expert, start / "heads" / ADAPTERS)
    else:
        adapt(expert)
    return expert.to(device).to(memory_format=torch.channels_last)
