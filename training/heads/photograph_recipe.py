"""Training of heads that know photographs: the same stages as `training.heads.recipe`, with class posteriors."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.bundle.pack import (
    MINI_DIMENSION,
    lite0_part,
    load_heads,
    mini_posteriors_shape,
    mini_uhead_shape,
    save_heads,
    save_posteriors,
)
from models.bundle.parts import load_classifier
from models.errors import DataError
from models.heads.posteriors import ClassPosteriors
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
from models.text import load_minilm
from training.data.photographs import imagenet_names
from training.heads.feature_store import CLASS_FEATURES, EXPERT_CELLS, TAP_CELLS, DeviceStore
from training.heads.frozen import HeadData, ViewData
from training.heads.pooled import MIRRORED, POOLED, all_cells, trained_rows
from training.heads.recipe import Course, HeadPlan, HeadRecord, Joined, Run, read_record, train_dense, train_pooled
from training.loop import Progress, Schedule

PHOTOGRAPHS = Course(
    steps=1200,
    rate=1e-3,
    cell_dropout=0.0,
    fused_dropout=0.2,
    shares={"photograph": 0.2, "sketch": 0.2, "drawing": 0.35, "outline": 0.12, "edges": 0.08, "icon": 0.05},
    memory=8,
)
_POOLED_ROWS = 1024  # pooled at once
_MEASURED = 16_384  # photographs that means and principal components are measured on


def train_photograph_heads(
    bundle: Path, data: ViewData, plan: HeadPlan, runs: Path, progress: Progress, *, start: Path
) -> None:
    """Train class posteriors beside the pool of other heads, then their dense path, and write all to `bundle`/heads.

    Args:
        bundle: its folder; a new one holds nothing but heads afterwards.
        data: frozen cells of views, and for the dense stage `HeadData` with scenes; on the device that trains.
        plan: what to train; its steps of the dense stage are taken where `data` hold scenes.
        runs: folder of checkpoints and curves, one below it for each plan.
        progress: called with (step, loss), the steps of both stages counted together.
        start: folder of the other heads. Their pool stays as it is.

    Raises:
        DataError: zero-shot heads would start from release heads, or heads from those that saw other maps.
    """
    before = read_record(start)
    if before.release and not plan.with_unseen:
        raise DataError(f"the heads in {start} saw the unseen: start zero-shot heads from zero-shot heads")
    if before.features != plan.features:
        raise DataError(f"the heads in {start} saw the maps '{before.features}', not '{plan.features}'")
    data = data.only(plan.features)
    torch.manual_seed(plan.seed)
    uhead, segmentation = UHead(mini_uhead_shape(), MINI_DIMENSION), SegmentationHead(MINI_DIMENSION)
    load_heads(uhead, segmentation, start)
    rows = trained_rows(data.views, plan.with_unseen)
    embed = load_minilm().to(data.device).embeddings
    joined = _posteriors(data, rows, embed(imagenet_names()))
    steps = plan.steps or PHOTOGRAPHS.steps
    schedule = Schedule(steps=steps, minutes=plan.minutes, learning_rate=PHOTOGRAPHS.rate, ema=0.99, weight_decay=0.05)
    folder = runs / f"photographs-{plan.folder}"
    run = Run(schedule=schedule, with_unseen=plan.with_unseen, folder=folder, seed=plan.seed, progress=progress)
    pooled = dataclasses.replace(data, store=pooled_store(uhead.pool, data.store, rows))
    train_pooled(uhead, pooled, run, PHOTOGRAPHS, embed=embed, joined=joined)
    if isinstance(data, HeadData) and plan.dense_steps:
        run = dataclasses.replace(
            run,
            schedule=dataclasses.replace(schedule, steps=plan.dense_steps),
            progress=lambda step, loss: progress(steps + step, loss),
        )
        train_dense(uhead, segmentation, data, run, joined=joined)
    save_heads(uhead, segmentation, bundle / "heads")
    save_posteriors(joined[0], bundle / "heads")
    record = HeadRecord(features=plan.features, release=plan.with_unseen, seed=plan.seed, steps=steps)
    record.write(bundle / "heads")


@torch.inference_mode()
def pooled_store(pool: nn.Module, store: DeviceStore, rows: NDArray[np.int64]) -> DeviceStore:
    """What a pool makes of some views and of their mirror images, in place of the cells that it reads; else zeros."""
    pool.eval()
    # The cells of a mirrored file are nearly the mirrored cells.
    found = {name: torch.zeros((len(store), MINI_DIMENSION), dtype=torch.float16) for name in (POOLED, MIRRORED)}
    for start in range(0, len(rows), _POOLED_ROWS):
        some = torch.from_numpy(rows[start : start + _POOLED_ROWS])
        cells = all_cells(store.only(TAP_CELLS, EXPERT_CELLS).read(some.to(store.device)))
        found[POOLED][some], found[MIRRORED][some] = pool(cells).half().cpu(), pool(cells.flip(3)).half().cpu()
    vectors = {name: values.to(store.device) for name, values in found.items()}
    return store.only(CLASS_FEATURES).replaced(vectors)


def _posteriors(data: ViewData, rows: NDArray[np.int64], embeddings: torch.Tensor) -> Joined:
    """New class posteriors, measured on the photographs among some rows, and the expert's classifier."""
    classifier = load_classifier(lite0_part(), Path()).to(data.device).requires_grad_(False)
    photographs = [row for row in rows if data.views.kinds[row] == "photograph"]
    chosen = np.random.default_rng(0).permutation(photographs)[:_MEASURED]
    posteriors = ClassPosteriors(mini_posteriors_shape(), MINI_DIMENSION).to(data.device)
    posteriors.measure(_features(data.store, chosen), embeddings.to(data.device))
    return posteriors, classifier


def _features(store: DeviceStore, rows: NDArray[np.int64]) -> torch.Tensor:
    read = store.only(CLASS_FEATURES).read(torch.from_numpy(rows).to(store.device))
    return read[CLASS_FEATURES].flatten(1)
