"""Passes recorded as graphs answer as the network does."""

import pytest
import torch
from torch import nn

from models.build import LoadedBundle
from models.encoder import Encoder
from models.tracing import recorded
from models.types import ImageBatch


def part_of(batch: ImageBatch, size: int) -> ImageBatch:
    return ImageBatch(
        pixels=batch.pixels[:size], timesteps=batch.timesteps[:size], captions=list(batch.captions[:size])
    )


def unrecorded(
    encoder: Encoder, batch: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, torch.Tensor]:
    with monkeypatch.context() as patched:
        patched.setattr(encoder, "_is_recorded", False)
        features = encoder.encode_images(batch)
    return features.pooled, features.dense


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_the_graph_gives_the_bits_of_the_network(
    tiny: LoadedBundle, batch: ImageBatch, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = part_of(batch, size)
    features = tiny.encoder.encode_images(part)
    assert not any(isinstance(graph, type(tiny.encoder._network)) for graph in tiny.encoder._graphs.values())
    pooled, dense = unrecorded(tiny.encoder, part, monkeypatch)
    assert torch.equal(features.pooled, pooled)
    assert torch.equal(features.dense, dense)


def test_time_steps_and_captions_are_no_part_of_the_recording(
    tiny: LoadedBundle, batch: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.encoder.encode_images(batch)
    other = ImageBatch(
        pixels=batch.pixels[:2], timesteps=torch.tensor([0, 900]), captions=["a photo of a whale", "a blue door"]
    )
    pooled, dense = unrecorded(tiny.encoder, other, monkeypatch)
    features = tiny.encoder.encode_images(other)
    assert torch.equal(features.pooled, pooled)
    assert torch.equal(features.dense, dense)


class Batchwise(nn.Module):
    """Does what a recording cannot follow: it reads the number of pictures as a number."""

    def forward(
        self, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = float(int(pixels.shape[0]))
        return pixels.mean(dim=(1, 2, 3)) + count, states + timesteps.view(-1, 1, 1)


def test_a_network_whose_graph_answers_otherwise_is_not_replaced() -> None:
    network = Batchwise()
    run = recorded(network, torch.rand(1, 3, 8, 8), torch.tensor([5]), torch.rand(1, 4, 2))
    assert run is network
