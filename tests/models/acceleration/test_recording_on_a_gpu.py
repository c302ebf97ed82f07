"""Which passes are replayed, and how they are padded; the graphs themselves need a GPU (`make bench-gpu`)."""

import pytest
import torch
from torch import nn

from models.acceleration import recording
from models.acceleration.recording import LARGEST, Batch, GraphedPass, Maps, bucket


class Network(nn.Module):
    """Counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(
        self, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.sizes.append(len(pixels))
        return pixels.mean(dim=(1, 2, 3)) + timesteps + states.mean(dim=(1, 2)), pixels * 2


class Replayed:
    """A graph's memory, computed again by the network at each replay."""

    def __init__(self, network: nn.Module, batch: Batch, _pool: tuple[int, int]) -> None:
        self._network = network
        self._inputs = tuple(part.clone() for part in batch)

    def replay(self, batch: Batch) -> Maps:
        count = len(batch[0])
        for recorded, part in zip(self._inputs, batch, strict=True):
            recorded[:count].copy_(part)
        pooled, dense = self._network(*self._inputs)
        return pooled[:count], dense[:count]


class Stale(Replayed):
    """Answers what it was recorded with."""

    def replay(self, batch: Batch) -> Maps:
        pooled, dense = self._network(*self._inputs)
        return pooled[: len(batch[0])], dense[: len(batch[0])]


class Refused(Replayed):
    """Cannot be recorded."""

    def __init__(self, *_arguments: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")


def passes(monkeypatch: pytest.MonkeyPatch, graph: type[Replayed]) -> tuple[Network, GraphedPass]:
    monkeypatch.setattr(recording, "_Graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    network = Network()
    return network, GraphedPass(network)


def some(count: int) -> Batch:
    generator = torch.Generator().manual_seed(count)
    return torch.rand((count, 3, 8, 8), generator=generator), torch.arange(count), torch.rand((count, 4, 2))


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (33, 64)])
def test_a_pass_is_padded_to_a_power_of_two(count: int, size: int) -> None:
    assert bucket(count) == size


@pytest.mark.parametrize("count", [1, 3, 8])
def test_padding_does_not_show(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    network, graphed = passes(monkeypatch, Replayed)
    for batch in (some(count), some(8), some(count)):
        for found, wanted in zip(graphed(*batch), network(*batch), strict=True):
            assert torch.allclose(found, wanted)
    assert graphed.sizes == sorted({bucket(count), 8})


@pytest.mark.parametrize("graph", [Stale, Refused], ids=["answers otherwise", "cannot be made"])
def test_the_network_goes_on_without_a_graph(monkeypatch: pytest.MonkeyPatch, graph: type[Replayed]) -> None:
    network, graphed = passes(monkeypatch, graph)
    batch = some(3)
    for found, wanted in zip(graphed(*batch), network(*batch), strict=True):
        assert torch.equal(found, wanted)
    assert graphed.sizes == []


def test_large_passes_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    network, graphed = passes(monkeypatch, Replayed)
    graphed(*some(LARGEST + 1))
    assert network.sizes == [LARGEST + 1]
