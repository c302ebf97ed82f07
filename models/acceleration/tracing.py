"""A pass recorded once as a graph: on the CPU it costs a fifth less and leaves the interpreter to others meanwhile."""

import warnings
from collections.abc import Callable

import torch
from torch import nn

Maps = tuple[torch.Tensor, torch.Tensor]
Pass = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Maps]

_TOLERANCE = 1e-4
"""Largest relative deviation from the network that was recorded; the same operations give none."""


def recorded(network: nn.Module, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> Pass:
    """The network's pass over pictures of this size, as a TorchScript graph for any batch.

    Args:
        network: takes pixels, time steps and text states; gives two tensors. It must not be in training.
        pixels: [B, 3, H, W], an example.
        timesteps: [B] int64.
        states: [B, T, C].

    Returns:
        The graph, or the network itself where a graph of it answers otherwise.
    """
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        # What the tracer fears are sizes that were read as numbers: they are of the picture, and checked below.
        warnings.simplefilter("ignore")
        pair = varied(pixels, timesteps, states, 2)
        # What a first pass makes and keeps, the noise, would be made anew in every pass of the graph.
        network(*pair)
        try:
            graph: Pass = torch.jit.trace(network, pair, check_trace=False)  # type: ignore[no-untyped-call]
            is_right = all(_is_same(network, graph, varied(pixels, timesteps, states, size)) for size in (1, 3))
        except (AttributeError, NotImplementedError, RuntimeError):
            return network
    return graph if is_right else network


def varied(
    pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch of so many made from the first sample; no two of it, and no two sizes, are alike."""
    turns = range(size, 2 * size)
    # The first pass is a warm-up's, of one colour: half of a ramp makes it a picture.
    shown = (pixels[0] + torch.linspace(-1, 1, pixels.shape[3], device=pixels.device, dtype=pixels.dtype)) / 2
    return (
        torch.stack([shown.roll(7 * turn, dims=2) for turn in turns]).contiguous(memory_format=torch.channels_last),
        torch.stack([(timesteps[0] + 131 * turn) % 1000 for turn in turns]),
        torch.stack([states[0].roll(turn, dims=1) for turn in turns]),
    )


def _is_same(network: nn.Module, graph: Pass, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> bool:
    """Whether both answer alike, the graph twice: it is rewritten after its first pass."""
    wanted = network(*batch)
    found = [graph(*batch), graph(*batch)]
    return all(agree(one, other) for each in found for one, other in zip(wanted, each, strict=True))


def agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two answers are the same but for rounding."""
    return float((one - other).abs().max()) <= _TOLERANCE * float(one.abs().max())
