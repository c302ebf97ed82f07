"""A step's losses and gradients: computed as written on a CPU, replayed as one CUDA graph on a GPU.

The networks here are small: launched one by one, a step's thousands of kernels keep a GPU waiting most of the time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

Losses = Mapping[str, torch.Tensor]
_WARM_UP_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLoss:
    """A loss in two parts.

    Attributes:
        draw: a generator → the tensors of a batch, of the same shapes every time, on the device that trains.
        losses: these tensors → named scalars whose sum is minimised; it must never wait for the device.
    """

    draw: Callable[[torch.Generator], tuple[torch.Tensor, ...]]
    losses: Callable[..., Losses]


class Gradients:
    """Losses of a new batch, with the gradients of their sum left in the module's parameters."""

    def __init__(self, module: nn.Module, loss: BatchLoss) -> None:
        self._module = module
        self._loss = loss
        self._is_recorded = next(module.parameters()).is_cuda
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[torch.Tensor, ...] = ()
        self._losses: Losses = {}

    def __call__(self, generator: torch.Generator) -> Losses:
        """One batch's losses."""
        batch = self._loss.draw(generator)
        if not self._is_recorded:
            return self._computed(batch)
        if self._graph is None:
            self._record(batch)
        for kept, fresh in zip(self._inputs, batch, strict=True):
            kept.copy_(fresh)
        if self._graph is not None:
            self._graph.replay()
        return self._losses

    def _computed(self, batch: tuple[torch.Tensor, ...]) -> Losses:
        self._module.zero_grad(set_to_none=True)
        losses = self._loss.losses(*batch)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return losses

    def _record(self, batch: tuple[torch.Tensor, ...]) -> None:
        """As torch's notes on CUDA graphs ask: some steps on another stream first, then gradients made in the graph."""
        self._inputs = tuple(values.clone() for values in batch)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP_STEPS):
                self._computed(self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._module.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._losses = {name: value.detach() for name, value in self._computed(self._inputs).items()}
        self._graph = graph
