"""A pass recorded once: a traced TorchScript graph on a CPU, CUDA graphs on a GPU (docs/adr/0022 and 0025)."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Maps = tuple[torch.Tensor, ...]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Pass = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Maps]

LARGEST = 64  # images of the largest graph: computing a larger pass takes longer than its launches
_TOLERANCE = 1e-4  # largest accepted deviation from the network, relative; the same operations give none


def traced(network: nn.Module, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> Pass:
    """Returns the network's pass over images of this size, as a graph for batches of any size.

    Args:
        network: takes pixels, time steps and text states and returns a tuple of tensors; in eval mode.
        pixels: [B, 3, H, W], an example.
        timesteps: [B] int64.
        states: [B, T, C].

    Returns:
        The graph, or the network itself if it cannot be traced or its graph deviates.
    """
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        # The tracer warns of sizes read as numbers; they belong to the image, and the comparison below covers them.
        warnings.simplefilter("ignore")
        pair = varied(pixels, timesteps, states, 2)  # the graph is compared at two other sizes below
        # A first pass fills the network's caches, so that the graph does not compute the noise in every pass.
        network(*pair)
        try:
            graph: Pass = torch.jit.trace(network, pair, check_trace=False)  # type: ignore[no-untyped-call]
            is_right = all(_is_traced_right(network, graph, varied(pixels, timesteps, states, size)) for size in (1, 3))
        except (AttributeError, NotImplementedError, RuntimeError):
            return network  # a torch without TorchScript, or an operation that it lacks
    return graph if is_right else network


class GraphedPass:
    """The network's pass over images of one size; implements `Pass`.

    Passes of 1, 2, 4 … `LARGEST` images are recorded on first use. Other sizes are padded to the next of these, and
    larger passes run on the network, as do sizes whose graph cannot be recorded or deviates. The returned tensors are
    the graph's own memory: copy them before the next call.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._pool = torch.cuda.graph_pool_handle()  # one pool: the graphs never run at once, so they share memory
        self._graphs: dict[int, _Graph | None] = {}

    @property
    def sizes(self) -> list[int]:
        """Numbers of images that have a graph."""
        return sorted(size for size, graph in self._graphs.items() if graph is not None)

    def __call__(self, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> Maps:
        """Runs one pass: [B, 3, H, W], [B] and [B, T, C] in, the network's outputs out."""
        batch = (pixels, timesteps, states)
        size = bucket(len(pixels))
        if size > LARGEST:
            return self._run(batch)
        if size not in self._graphs:
            self._graphs[size] = self._recorded(batch, size)
        graph = self._graphs[size]
        return self._run(batch) if graph is None else graph.replay(batch)

    def _run(self, batch: Batch) -> Maps:
        features: Maps = self._network(*batch)
        return features

    def _recorded(self, batch: Batch, size: int) -> "_Graph | None":
        pixels, timesteps, states = batch
        try:
            graph = _Graph(self._network, varied(*batch, size), self._pool)
            check = varied(pixels.flip(3), (timesteps + 77) % 1000, states.flip(1), size)
            wanted = self._run(check)
            # A part of the batch first: the samples that pad it must not show.
            is_right = all(_is_same(graph, check, wanted, count) for count in (size // 2 + 1, size))
        except torch.OutOfMemoryError:
            raise  # the engine halves the batch
        except RuntimeError:
            return None  # an operation that cannot be recorded; the network computes this size
        return graph if is_right else None


class _Graph:
    """One recorded pass and the memory that it reads and writes."""

    def __init__(self, network: nn.Module, batch: Batch, pool: Any) -> None:
        self._inputs = tuple(part.clone() for part in batch)
        side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            # Caches filled and kernels chosen in first passes must not be part of the graph.
            for _ in range(3):
                network(*self._inputs)
        torch.cuda.current_stream().wait_stream(side_stream)
        self._graph = torch.cuda.CUDAGraph()
        # Restores the stream if recording fails; "thread_local" lets other threads read CUDA memory for metrics.
        restored = torch.cuda.stream(torch.cuda.current_stream())
        with restored, torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._outputs: Maps = network(*self._inputs)

    def replay(self, batch: Batch) -> Maps:
        """Returns the outputs for a batch of at most the recorded size; samples of an earlier batch pad it."""
        count = len(batch[0])
        for recorded, part in zip(self._inputs, batch, strict=True):
            recorded[:count].copy_(part)  # in place: a graph reads the addresses that it was recorded with
        self._graph.replay()
        return tuple(output[:count] for output in self._outputs)


def _is_same(graph: _Graph, batch: Batch, wanted: Maps, count: int) -> bool:
    pixels, timesteps, states = batch
    answer = graph.replay((pixels[:count], timesteps[:count], states[:count]))
    return all(agree(one, other[:count]) for one, other in zip(answer, wanted, strict=True))


def bucket(count: int) -> int:
    """Returns the smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def varied(pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor, size: int) -> Batch:
    """Returns a batch of `size` samples made from the first one; all samples of all sizes differ."""
    turns = range(size, 2 * size)
    # A warm-up's image is of one colour, so half of a ramp is mixed in.
    image = (pixels[0] + torch.linspace(-1, 1, pixels.shape[3], device=pixels.device, dtype=pixels.dtype)) / 2
    return (
        torch.stack([image.roll(7 * turn, dims=2) for turn in turns]).contiguous(memory_format=torch.channels_last),
        torch.stack([(timesteps[0] + 131 * turn) % 1000 for turn in turns]),
        torch.stack([states[0].roll(turn, dims=1) for turn in turns]),
    )


def _is_traced_right(network: nn.Module, graph: Pass, batch: Batch) -> bool:
    wanted = network(*batch)
    answers = [graph(*batch), graph(*batch)]  # twice: TorchScript optimizes a graph after its first pass
    return all(agree(one, other) for each in answers for one, other in zip(wanted, each, strict=True))


def agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Returns whether two tensors are equal up to rounding."""
    return float((one - other).abs().max()) <= _TOLERANCE * float(one.abs().max())
