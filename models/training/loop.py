"""The training loop all stages share: budgeted, resumable, averaged, logged."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.training.checkpoint import load_checkpoint, save_checkpoint
from models.training.curves import append_row, plot_curves
from models.training.ema import Ema

LossFunction = Callable[[torch.Generator], Mapping[str, torch.Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast a stage trains.

    Attributes:
        steps: steps in all, earlier runs included.
        minutes: wall-clock budget of this run; it ends at whichever comes first.
        learning_rate: AdamW's, after `warmup_steps` of linear warm-up.
        decay: whether the rate falls to zero along a cosine over `steps` (else it stays).
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

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        if not self.decay:
            return self.learning_rate * warm
        done = torch.tensor(min(1.0, step / self.steps) * torch.pi)
        return self.learning_rate * warm * 0.5 * (1 + float(torch.cos(done)))


def fit(
    module: nn.Module,
    loss: LossFunction,
    schedule: Schedule,
    *,
    folder: Path,
    seed: int,
    progress: Callable[[int, float], None] = lambda _step, _loss: None,
) -> dict[str, torch.Tensor]:
    """Trains `module` in place, going on from the folder's checkpoint when there is one.

    Args:
        module: what is trained.
        loss: draws a batch with the generator and returns named scalars; their sum is minimised.
        schedule: length and rates.
        folder: holds checkpoint.pt, curve.csv and curve.png.
        seed: of batches and augmentation.
        progress: called with (step, loss) after each step.

    Returns:
        The averaged weights, in the module's own key names.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.99)
    )
    ema = Ema(module, schedule.ema)
    step, seconds_before = _resume(folder, module, optimizer, ema, generator)
    module.train()
    start = saved = time.monotonic()
    while step < schedule.steps and time.monotonic() - start < schedule.minutes * 60:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        losses = loss(generator)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        step += 1
        ema.update(module, step)
        seconds = seconds_before + time.monotonic() - start
        if step % 10 == 0:
            values = {name: float(value.detach()) for name, value in losses.items()}
            append_row(folder / "curve.csv", {"step": step, "seconds": seconds, **values})
        progress(step, float(total.detach()))
        if time.monotonic() - saved > schedule.checkpoint_s:
            _save(folder, module, optimizer, ema, generator, step, seconds)
            saved = time.monotonic()
    _save(folder, module, optimizer, ema, generator, step, seconds_before + time.monotonic() - start)
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
    ema.state = state["ema"]
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
