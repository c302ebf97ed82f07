"""The training loop all stages share: budgeted, resumable, averaged, logged."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from training.checkpoint import load_checkpoint, save_checkpoint
from training.curves import append_row, plot_curves
from training.ema import Ema
from training.steps import BatchLoss, Gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast a stage trains.

    Attributes:
        steps: steps in all, earlier runs included.
        minutes: wall-clock budget of this run; it ends at whichever comes first.
        learning_rate: AdamW's, after `warmup_steps` of linear warm-up.
        decay: whether the rate falls to zero along a cosine, over `steps` or over this run's minutes, whichever are
            further gone (else it stays).
        weight_decay: AdamW's.
        ema: decay of the averaged weights.
        checkpoint_s: seconds between checkpoints.
    """

    steps: int
    minutes: float
    learning_rate: float
    warmup_steps: int = 100
    decay: bool = False
    weight_decay: float = 1e-2
    ema: float = 0.999
    checkpoint_s: float = 120.0

    def rate(self, step: int, spent: float = 0.0) -> float:
        """Learning rate at a step, a share `spent` of this run's minutes being gone."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        if not self.decay:
            return self.learning_rate * warm
        done = min(1.0, max(step / self.steps, spent))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(done * math.pi))


def fit(
    module: nn.Module,
    loss: BatchLoss,
    schedule: Schedule,
    *,
    folder: Path,
    seed: int,
    progress: Callable[[int, float], None] = lambda _step, _loss: None,
) -> dict[str, torch.Tensor]:
    """Trains `module` in place, going on from the folder's checkpoint when there is one.

    Args:
        module: what is trained, on its device.
        loss: what is minimised.
        schedule: length and rates.
        folder: holds checkpoint.pt, curve.csv and curve.png.
        seed: of batches and augmentation.
        progress: called with (step, loss) every ten steps.

    Returns:
        The averaged weights, in the module's own key names.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        betas=(0.9, 0.99),
        fused=next(module.parameters()).is_cuda,
    )
    ema = Ema(module, schedule.ema)
    step, seconds_before = _resume(folder, module, optimizer, ema, generator)
    module.train()
    gradients = Gradients(module, loss)
    start = saved = time.monotonic()
    while step < schedule.steps and (spent := time.monotonic() - start) < schedule.minutes * 60:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, spent / (schedule.minutes * 60))
        losses = gradients(generator)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        step += 1
        ema.update(module, step)
        seconds = seconds_before + time.monotonic() - start
        # Numbers are read now and then: reading one waits for the device.
        if step % 10 == 0:
            values = {name: float(value.detach()) for name, value in losses.items()}
            append_row(folder / "curve.csv", {"step": step, "seconds": seconds, **values})
            progress(step, sum(values.values()))
        if time.monotonic() - saved > schedule.checkpoint_s:
            _save(folder, module, optimizer, ema, generator, step, seconds)
            saved = time.monotonic()
    _save(folder, module, optimizer, ema, generator, step, seconds_before + time.monotonic() - start)
    module.zero_grad(set_to_none=True)
    if (folder / "curve.csv").is_file():
        plot_curves(folder / "curve.csv", folder / "curve.png")
    return ema.state


def _resume(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, generator: torch.Generator
) -> tuple[int, float]:
    state = load_checkpoint(folder / "checkpoint.pt")
    if state is None:
        return 0, 0.0
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    ema.state = {name: tensor.to(ema.state[name].device) for name, tensor in state["ema"].items()}
    generator.set_state(state["generator"])
    return int(state["step"]), float(state["seconds"])


def _save(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    generator: torch.Generator,
    step: int,
    seconds: float,
) -> None:
    save_checkpoint(
        folder / "checkpoint.pt",
        {
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": ema.state,
            "generator": generator.get_state(),
            "step": step,
            "seconds": seconds,
        },
    )
