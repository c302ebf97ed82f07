"""Devices, their precision, and inputs."""

import numpy as np
import pytest
import torch

from models.errors import DataError
from training.devices import CPU, batch_size, device_named, half_on_gpu, randn
from training.prior.corpus import to_tensor


def test_a_device_that_is_not_there_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_named("cpu") == CPU
    with pytest.raises(DataError, match="'abacus' is no device"):
        device_named("abacus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match="'cuda' was asked for and there is none"):
        device_named("cuda")


def test_the_cpu_computes_in_single_precision_from_its_generator() -> None:
    with half_on_gpu(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    one, other = (randn((4,), torch.Generator().manual_seed(3), CPU) for _ in range(2))
    assert torch.equal(one, other)
    assert batch_size(CPU, cpu=8, gpu=1024) == 8


def test_pixels_become_inputs_channels_last() -> None:
    pixels = np.array([[[[0, 255, 51]] * 2] * 3], dtype=np.uint8)
    found = to_tensor(pixels)
    assert found.shape == (1, 3, 3, 2)
    assert found[0, :, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])
    assert found.is_contiguous(memory_format=torch.channels_last)
