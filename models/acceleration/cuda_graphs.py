"""A pass recorded as CUDA graphs, one a number of pictures: a thousand small launches become one."""

from typing import Any

import torch
from torch import nn

from models.acceleration.tracing import Maps, agree, varied

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

LARGEST = 64
"""Pictures of the largest graph; a longer pass computes for longer than its launches take."""


class GraphedPass:
    """The network's pass over pictures of one size; implements `models.acceleration.tracing.Pass`.

    Passes of 1, 2, 4 … `LARGEST` pictures are recorded when first asked for, one of another size is padded to the next,
    a larger one runs as it is. Where a graph cannot be made or answers otherwise, the network itself goes on.
    What it returns lies in the graph's own memory until the next call: copy it before.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, _Graph | None] = {}

    @property
    def sizes(self) -> list[int]:
        """Numbers of pictures that graphs are used for."""
        return sorted(size for size, graph in self._graphs.items() if graph is not None)

    def __call__(self, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> Maps:
        """As the network: [B, 3, H, W], [B] and [B, T, C] in, `pooled` and `dense` out."""
        batch = (pixels, timesteps, states)
        size = bucket(len(pixels))
        if size > LARGEST:
            return self._run(batch)
        if size not in self._graphs:
            self._graphs[size] = self._recorded(batch, size)
        graph = self._graphs[size]
        return self._run(batch) if graph is None else graph.replay(batch)

    def _run(self, batch: Batch) -> Maps:
        found: Maps = self._network(*batch)
        return found

    def _recorded(self, batch: Batch, size: int) -> "_Graph | None":
        pixels, timesteps, states = batch
        try:
            graph = _Graph(self._network, varied(*batch, size), self._pool)
            check = varied(pixels.flip(3), (timesteps + 77) % 1000, states.flip(1), size)
            wanted = self._run(check)
            # First a part of it: what was there before must not show.
            is_right = all(_is_same(graph, check, wanted, count) for count in (size // 2 + 1, size))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return None
        return graph if is_right else None


class _Graph:
    """One recorded pass and the memory that it reads and writes."""

    def __init__(self, network: nn.Module, batch: Batch, pool: Any) -> None:
        self._inputs = tuple(part.clone() for part in batch)
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            # What a first pass makes and keeps, and what libraries choose or allocate once, is no part of a graph.
            for _ in range(3):
                network(*self._inputs)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # Others' threads may call CUDA meanwhile: metrics read its memory.
        here = torch.cuda.stream(torch.cuda.current_stream())  # comes back here even if the recording fails
        with here, torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._outputs: Maps = network(*self._inputs)

    def replay(self, batch: Batch) -> Maps:
        """The outputs for a batch of at most the recorded size; what pads it is what was there before."""
        count = len(batch[0])
        for kept, part in zip(self._inputs, batch, strict=True):
            kept[:count].copy_(part)
        self._graph.replay()
        pooled, dense = self._outputs
        return pooled[:count], dense[:count]


def _is_same(graph: _Graph, batch: Batch, wanted: Maps, count: int) -> bool:
    pixels, timesteps, states = batch
    found = graph.replay((pixels[:count], timesteps[:count], states[:count]))
    return all(agree(one, other[:count]) for one, other in zip(found, wanted, strict=True))


def bucket(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
