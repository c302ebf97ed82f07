"""The training loop all stages share: bounded in steps and minutes, resumable, averaged and logged."""

import csv
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.devices import BatchLoss, Gradients

Progress = Callable[[int, float], None]  # called with (steps or rows done, loss); the loss is 0 where there is none

_CHECKPOINT_S = 120.0  # between checkpoints: an interruption loses at most this
_LOGGED_STEPS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Limits, learning rate and averaging of a stage."""

    steps: int  # total, earlier runs included
    minutes: float  # wall-clock budget of this run, which ends at whichever limit comes first
    learning_rate: float  # of AdamW, after a linear warm-up
    warmup_steps: int = 100
    decay: bool = True  # to zero along a cosine, by steps or by this run's minutes, whichever is further on
    weight_decay: float = 1e-2  # of AdamW
    ema: float = 0.999  # decay of the averaged weights

    def rate(self, step: int, spent: float = 0.0) -> float:
        """Learning rate at a step when a share `spent` of this run's minutes is gone."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        done = min(1.0, max(step / self.steps, spent)) if self.decay else 0.0
        return self.learning_rate * warm * 0.5 * (1 + math.cos(done * math.pi))


class Ema:
    """Exponential moving average of a module's parameters and buffers, the weights that ship."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the module's present weights."""
        # The ramp keeps the initialization from holding back early averages.
        decay = min(self.decay, (1 + step) / (10 + step))
        now = module.state_dict()
        floating = [name for name, tensor in now.items() if tensor.is_floating_point()]
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move([self.state[name] for name in floating], [now[name] for name in floating], torch.tensor(step))
        for name in now.keys() - set(floating):
            self.state[name].copy_(now[name])


def fit(
    module: nn.Module,
    loss: BatchLoss,
    schedule: Schedule,
    *,
    folder: Path,
    seed: int,
    progress: Progress = lambda _step, _loss: None,
) -> dict[str, torch.Tensor]:
    """Train `module` on its device, from the folder's checkpoint if there is one.

    Args:
        folder: receives checkpoint.pt, curve.csv and curve.png.
        seed: of batches and augmentation; dropout and initialization have torch's.
        progress: called every ten steps.

    Returns:
        The averaged weights, in the module's own key names.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        betas=(0.9, 0.99),  # short stages: 0.999 would average squared gradients over 1,000 steps
        fused=next(module.parameters()).is_cuda,
    )
    generator, ema = torch.Generator().manual_seed(seed), Ema(module, schedule.ema)
    run = _Run(file=folder / "checkpoint.pt", module=module, optimizer=optimizer, ema=ema, generator=generator)
    run.resume()
    module.train()
    gradients = Gradients(module, loss)
    seconds_before, start = run.seconds, time.monotonic()
    saved = start
    while run.step < schedule.steps and (spent := time.monotonic() - start) < schedule.minutes * 60:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(run.step, spent / (schedule.minutes * 60))
        losses = gradients(run.generator)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        run.step += 1
        run.ema.update(module, run.step)
        run.seconds = seconds_before + time.monotonic() - start
        # Reading a loss waits for the device, so only some are read.
        if run.step % _LOGGED_STEPS == 0:
            values = {name: float(value.detach()) for name, value in losses.items()}
            _append_row(folder / "curve.csv", {"step": run.step, "seconds": run.seconds, **values})
            progress(run.step, sum(values.values()))
        if time.monotonic() - saved > _CHECKPOINT_S:
            run.save()
            saved = time.monotonic()
    run.save()
    module.zero_grad(set_to_none=True)
    if (folder / "curve.csv").is_file():
        _plot_curves(folder / "curve.csv", folder / "curve.png")
    return run.ema.state


@dataclass(slots=True, kw_only=True)
class _Run:
    """State of a run, saved in checkpoints."""

    file: Path
    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    generator: torch.Generator
    step: int = 0
    seconds: float = 0.0

    def resume(self) -> None:
        state = load_checkpoint(self.file)
        if state is None:
            return
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.state = {name: tensor.to(self.ema.state[name].device) for name, tensor in state["ema"].items()}
        self.generator.set_state(state["generator"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])

    def save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state,
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        save_checkpoint(self.file, state)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Replace `path` atomically by `state` (tensors, numbers, strings, nested dicts and lists)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(dict(state), file)
        # A rename may reach the disk before the data does.
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last complete checkpoint, or None. Nothing in it is executed."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _append_row(path: Path, row: Mapping[str, float]) -> None:
    is_new = not path.is_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if is_new:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" for key, value in row.items()})


def _plot_curves(path: Path, image: Path) -> None:
    """Draw every column of a CSV but `step` and `seconds` over the steps, raw and smoothed."""
    from matplotlib.figure import Figure

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = np.array([float(row["step"]) for row in rows])
    names = [name for name in rows[0] if name not in ("step", "seconds")]
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        values = np.array([float(row[name]) for row in rows])
        window = max(1, len(values) // 30)
        smooth = np.convolve(np.pad(values, (window - 1, 0), mode="edge"), np.ones(window) / window, mode="valid")
        axis.plot(steps, values, color="0.8")
        axis.plot(steps, smooth, color="C0")
        axis.set(title=name, xlabel="step", yscale="log" if values.min() > 0 else "linear")
    figure.savefig(image, dpi=90)
