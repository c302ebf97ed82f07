"""What the device's thread makes of errors."""

import weakref

import pytest
import torch

from app.engine.entries import DeviceFatal, DeviceOutOfMemory
from app.engine.executor import _classified


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
        MemoryError(),
    ],
    ids=["allocator", "driver", "cublas", "cudnn", "cpu", "python"],
)
def test_no_room_is_no_fatal_error(error: BaseException) -> None:
    assert isinstance(_classified(error), DeviceOutOfMemory)


def test_an_error_that_outlives_the_context_is_fatal() -> None:
    assert isinstance(_classified(RuntimeError("CUDA error: an illegal memory access was encountered")), DeviceFatal)


class Map:
    """Stands for a tensor of the failed pass."""


def test_a_pass_without_room_leaves_its_room_to_the_half_that_is_tried_next() -> None:
    seen: list[weakref.ref[Map]] = []

    def run_out() -> None:
        held = Map()
        seen.append(weakref.ref(held))
        raise torch.OutOfMemoryError("no room")

    try:
        run_out()
    except torch.OutOfMemoryError as error:
        assert seen[0]() is not None
        _classified(error)
        assert seen[0]() is None
