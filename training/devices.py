"""The device that training computes on, a step's gradients, and worker processes for what needs no device.

A CPU computes a step as written, in float32. A GPU replays it as one CUDA graph with matrix products in bfloat16: the
networks are so small that launching their kernels one by one keeps a GPU waiting most of the time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from torch import nn

from models.errors import DataError

CPU = torch.device("cpu")
Losses = Mapping[str, torch.Tensor]
Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")
_WARM_UP_STEPS = 3  # torch's notes on CUDA graphs ask for some


def device_named(name: str) -> torch.device:
    """Returns the device of a name such as `cpu` or `cuda`.

    Raises:
        DataError: torch knows no device of that name, or the machine has no GPU.
    """
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise DataError(f"'{name}' is no device torch knows") from err
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"the device '{name}' was asked for and there is none")
    return device


def half_on_gpu(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 on a GPU; nothing on a CPU, where bfloat16 is slower."""
    # The cache of cast weights would outlive a CUDA graph.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


def batch_size(device: torch.device, *, cpu: int, gpu: int) -> int:
    """Images that a frozen network encodes at once."""
    # A CPU is fastest while a batch's maps fit into its cache; a GPU wants thousands of rows.
    return gpu if device.type == "cuda" else cpu


def randn(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Normal noise from `generator` on a CPU, from the device's own generator (seeded once) on a GPU."""
    if device.type == "cuda":
        return torch.randn(shape, device=device)
    return torch.randn(shape, generator=generator)


def to_input(pixels: torch.Tensor) -> torch.Tensor:
    """[B, H, W, 3] uint8 RGB as [B, 3, H, W] float32 in [-1, 1], channels last, on the same device."""
    return (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def use_fast_products() -> None:
    """Let a GPU round operands of float32 products to TF32 and benchmark its convolutions."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLoss:
    """A loss in two functions, so that a GPU can record the second."""

    draw: Callable[[torch.Generator], tuple[torch.Tensor, ...]]  # tensors of a batch: the same shapes every time
    losses: Callable[..., Losses]  # of these tensors, scalars whose sum is minimized; must not wait for the device


class Gradients:
    """Computes the losses of a new batch and leaves the gradients of their sum in the module's parameters."""

    def __init__(self, module: nn.Module, loss: BatchLoss) -> None:
        self._module = module
        self._loss = loss
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[torch.Tensor, ...] = ()
        self._losses: Losses = {}

    def __call__(self, generator: torch.Generator) -> Losses:
        """Losses of one batch, scalars by name."""
        batch = self._loss.draw(generator)
        if not next(self._module.parameters()).is_cuda:
            return self._compute(batch)
        graph = self._graph or self._record(batch)
        # A graph reads and writes the addresses it was recorded with.
        for recorded, drawn in zip(self._inputs, batch, strict=True):
            recorded.copy_(drawn)
        graph.replay()
        return self._losses

    def _compute(self, batch: tuple[torch.Tensor, ...]) -> Losses:
        self._module.zero_grad(set_to_none=True)
        losses = self._loss.losses(*batch)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return losses

    def _record(self, batch: tuple[torch.Tensor, ...]) -> torch.cuda.CUDAGraph:
        self._inputs = tuple(values.clone() for values in batch)
        warm_up = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(_WARM_UP_STEPS):
                self._compute(self._inputs)
        torch.cuda.current_stream().wait_stream(warm_up)
        # Gradients must be allocated inside the graph.
        self._module.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._losses = {name: value.detach() for name, value in self._compute(self._inputs).items()}
        return self._graph


_function_and_shared: tuple[Callable[..., Any], Any]


def in_processes(
    function: Callable[[Shared, Task], Result], shared: Shared, tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """Yield `function(shared, task)` of every task, in order.

    Args:
        function: at module level, so that it can be pickled.
        shared: read by all tasks; forked processes share its memory.
        tasks: arguments, pickled one by one.
        workers: processes; with one, this process runs everything.
    """
    if workers <= 1:
        for task in tasks:
            yield function(shared, task)
        return
    fork = get_context("fork")  # spawned processes would receive a copy of `shared`
    with ProcessPoolExecutor(workers, mp_context=fork, initializer=_remember, initargs=(function, shared)) as pool:
        yield from pool.map(_call, tasks)


def _remember(function: Callable[..., Any], shared: Any) -> None:
    global _function_and_shared
    _function_and_shared = (function, shared)


def _call(task: Any) -> Any:
    function, shared = _function_and_shared
    return function(shared, task)
