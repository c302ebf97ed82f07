"""A run may stop anywhere and continue as if it had not."""

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from training.devices import BatchLoss
from training.loop import Ema, Schedule, fit, load_checkpoint, save_checkpoint

TARGET = torch.tensor([[2.0, -1.0]])


def schedule(steps: int, minutes: float = 1.0) -> Schedule:
    return Schedule(steps=steps, minutes=minutes, learning_rate=0.05, warmup_steps=5, decay=False)


def train(
    folder: Path, steps: int, *, minutes: float = 1.0, seed: int = 3
) -> tuple[nn.Linear, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    module = nn.Linear(2, 1)

    def draw(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        return (torch.randn(16, 2, generator=generator),)

    def losses(inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mse": (module(inputs) - inputs @ TARGET.T).square().mean()}

    return module, fit(module, BatchLoss(draw=draw, losses=losses), schedule(steps, minutes), folder=folder, seed=seed)


def test_the_loss_falls_and_the_average_follows(tmp_path: Path) -> None:
    module, averaged = train(tmp_path, 300)
    assert torch.allclose(module.weight, TARGET, atol=0.05)
    assert torch.allclose(averaged["weight"], TARGET, atol=0.3)
    with (tmp_path / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows][:2] == ["10", "20"]
    assert float(rows[-1]["mse"]) < float(rows[0]["mse"]) / 10
    assert (tmp_path / "curve.png").stat().st_size > 0


def test_stopping_and_going_on_equals_going_through(tmp_path: Path) -> None:
    straight, straight_average = train(tmp_path / "a", 60)
    train(tmp_path / "b", 25)
    resumed, resumed_average = train(tmp_path / "b", 60)
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.equal(straight_average["weight"], resumed_average["weight"])


def test_no_budget_trains_nothing_but_leaves_a_checkpoint(tmp_path: Path) -> None:
    before = nn.Linear(2, 1)
    torch.manual_seed(0)
    before.reset_parameters()
    module, _ = train(tmp_path, 100, minutes=0.0)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state is not None
    assert state["step"] == 0
    assert torch.equal(module.weight, state["module"]["weight"])


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (9, 1.0), (500, 0.5), (1000, 0.0)])
def test_rate_warms_up_and_decays(step: int, rate: float) -> None:
    decaying = Schedule(steps=1000, minutes=1, learning_rate=1.0, warmup_steps=10)
    assert decaying.rate(step) == pytest.approx(rate, abs=1e-3)


def test_the_rate_falls_with_the_minutes_too() -> None:
    decaying = Schedule(steps=1000, minutes=1, learning_rate=1.0, warmup_steps=10)
    assert decaying.rate(100, spent=0.5) == pytest.approx(0.5)
    assert decaying.rate(500, spent=0.1) == pytest.approx(0.5)
    assert decaying.rate(100, spent=1.0) == pytest.approx(0)


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"step": 1, "weights": torch.ones(2)})

    class Unsaveable:
        def __reduce__(self) -> str:
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        save_checkpoint(path, {"step": 2, "weights": Unsaveable()})
    state = load_checkpoint(path)
    assert state is not None
    assert state["step"] == 1


def test_average_starts_fast_then_slows_to_its_decay() -> None:
    module = nn.BatchNorm1d(1)
    ema = Ema(module, decay=0.9)
    nn.init.constant_(module.weight, 2.0)
    assert module.num_batches_tracked is not None
    module.num_batches_tracked += 5
    ema.update(module, 0)
    assert ema.state["weight"].item() == pytest.approx(1.9)
    assert ema.state["num_batches_tracked"].item() == 5
    ema.update(module, 10_000)
    assert ema.state["weight"].item() == pytest.approx(1.91)
