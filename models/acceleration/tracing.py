"""A pass traced once as a TorchScript graph: on a CPU a fifth cheaper, and it releases the GIL (docs/adr/0022)."""

import warnings
from collections.abc import Callable

import torch
from torch import nn

Maps = tuple[torch.Tensor, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Pass = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Maps]

_TOLERANCE = 1e-4  # largest accepted deviation from the network, relative; the same operations give none


def traced(network: nn.Module, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> Pass:
    """Returns the network's pass over images of this size, as a graph for batches of any size.

    Args:
        network: takes pixels, time steps and text states and returns two tensors; in eval mode.
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
            is_right = all(_is_same(network, graph, varied(pixels, timesteps, states, size)) for size in (1, 3))
        except (AttributeError, NotImplementedError, RuntimeError):
            return network  # a torch without TorchScript, or an operation that it lacks
    return graph if is_right else network


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


def _is_same(network: nn.Module, graph: Pass, batch: Batch) -> bool:
    wanted = network(*batch)
    answers = [graph(*batch), graph(*batch)]  # twice: TorchScript optimizes a graph after its first pass
    return all(agree(one, other) for each in answers for one, other in zip(wanted, each, strict=True))


def agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Returns whether two tensors are equal up to rounding."""
    return float((one - other).abs().max()) <= _TOLERANCE * float(one.abs().max())
