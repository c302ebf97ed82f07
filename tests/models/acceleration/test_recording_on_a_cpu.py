"""Passes traced as graphs answer as the network does."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from models.acceleration.recording import Pass, traced
from models.bundle.build import LoadedBundle, load_bundle
from models.encoder import Encoder
from models.types import ImageBatch

MINI = Path(__file__).parents[3] / "weights" / "mini"


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
    assert not any(isinstance(graph, type(tiny.encoder.network)) for graph in tiny.encoder._graphs.values())
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


def in_workers(workers: int, call: Callable[[int], list[torch.Tensor]], calls: int) -> list[list[torch.Tensor]]:
    """What so many calls give from so many threads, each with one torch thread."""
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(call, range(calls)))


def are_equal(found: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> bool:
    """Whether all bits are those expected, the expected in turn."""
    turns = [expected[number % len(expected)] for number in range(len(found))]
    return all(torch.equal(*pair) for each in zip(found, turns, strict=True) for pair in zip(*each, strict=True))


@pytest.fixture(scope="module")
def mini() -> Encoder:
    return load_bundle(MINI, device="cpu").encoder


@pytest.mark.parametrize("is_recorded", [True, False], ids=["graph", "network"])
def test_passes_side_by_side_give_the_bits_of_one_after_another(
    mini: Encoder, batch: ImageBatch, is_recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mini, "_is_recorded", is_recorded)
    parts = [part_of(batch, size) for size in (1, 8, 2, 5)]
    strings = ["a fish", "a house by the sea, and a boat"]

    def encode(number: int) -> list[torch.Tensor]:
        features = mini.encode_images(parts[number % 4])
        return [features.pooled, features.dense, mini.encode_texts(strings[: 1 + number % 2]).pooled]

    alone = in_workers(1, encode, 4)
    assert are_equal(in_workers(3, encode, 24), alone)


def test_a_size_that_two_threads_meet_at_once_is_recorded_once(
    tiny_bundle: Path, batch: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, recordings = load_bundle(tiny_bundle, device="cpu").encoder, list[torch.Size]()

    def counted(network: nn.Module, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> Pass:
        recordings.append(pixels.shape[2:])
        return traced(network, pixels, timesteps, states)

    monkeypatch.setattr("models.encoder.traced", counted)

    def encode(_: int) -> list[torch.Tensor]:
        features = encoder.encode_images(part_of(batch, 2))
        return [features.pooled, features.dense]

    found = in_workers(3, encode, 6)
    assert are_equal(found, found[:1])
    assert recordings == [torch.Size([128, 128])]


class Batchwise(nn.Module):
    """Does what a recording cannot follow: it reads the number of images as a number."""

    def forward(
        self, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = float(int(pixels.shape[0]))
        return pixels.mean(dim=(1, 2, 3)) + count, states + timesteps.view(-1, 1, 1)


def test_a_network_whose_graph_answers_otherwise_is_not_replaced() -> None:
    network = Batchwise()
    run = traced(network, torch.rand(1, 3, 8, 8), torch.tensor([5]), torch.rand(1, 4, 2))
    assert run is network
