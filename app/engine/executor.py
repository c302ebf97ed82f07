"""The threads that own the device, and the two beside them that prepare its input and take apart its output."""

import asyncio
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from prometheus_client import Gauge

from app.domain import Encoder, View
from app.engine.entries import Batch, DeviceFatal, DeviceOutOfMemory, Entry, Group, Kind, Output, PassResult
from app.runtime.process import WORKER_NICENESS, be_nice
from models.transforms import to_unit_batch
from models.types import ImageBatch

_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raw:
    """Arrays of a whole batch: [B, D] and [B, D, h, w] float32."""

    pooled: NDArray[np.float32]
    dense: NDArray[np.float32]


class DeviceExecutor:
    """Runs batches in order, one in each of its lanes, in inference mode; implements `work.Device`.

    A lane is a thread of its own, and the batch that waits longest goes to the lane that is free first. While passes
    run, the next batch is stacked and the one before is taken apart in other threads, and a lane goes from one to the
    next without the loop.

    Args:
        encoder: the two device operations; with more than one lane it must take calls from several threads.
        lanes: passes at once.
        threads: of torch's own pool, a lane; 0 leaves its default.
        clock: the engine's.
    """

    def __init__(
        self, encoder: Encoder, *, workers: int = 1, threads: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._encoder = encoder
        self._workers = workers
        self._clock = clock
        self._is_dead = False
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="device", initializer=_prepare_thread, initargs=(threads, workers > 1)
        )
        self._beside = ThreadPoolExecutor(2, thread_name_prefix="staging")

    @property
    def fingerprint(self) -> str:
        """Of the encoder."""
        return self._encoder.fingerprint

    @property
    def workers(self) -> int:
        """Passes at once."""
        return self._workers

    def export_memory(self, gauge: Gauge) -> None:
        """Let a gauge read the memory of this process and, where there is one, of the accelerator."""
        gauge.labels("resident").set_function(_resident_bytes)
        if torch.cuda.is_available():
            gauge.labels("allocated").set_function(torch.cuda.memory_allocated)
            gauge.labels("reserved").set_function(torch.cuda.memory_reserved)

    def submit(self, batch: Batch) -> "asyncio.Future[PassResult]":
        """Stage the batch now, run it when a lane is free. Raises as `work.Device` says."""
        done: Future[PassResult] = Future()
        staged = self._beside.submit(_stacked, batch.entries)
        self._pool.submit(self._run, batch, staged, done)
        return asyncio.wrap_future(done)

    def stop(self) -> None:
        """Wait for the running batches, tell what came of them, and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._beside.shutdown(wait=True)

    def _run(self, batch: Batch, staged: "Future[ImageBatch | None]", done: "Future[PassResult]") -> None:
        try:
            if self._is_dead:
                raise DeviceFatal("the device failed before")
            prepared = staged.result()
            ran = batch.begin(self._clock())
            if not ran:
                done.set_result(PassResult(outputs=[], finished_s=self._clock()))
                return
            if len(ran) < len(batch.entries):
                prepared = _stacked(ran)
            raw = self._pass(ran, prepared)
            self._beside.submit(_take_apart, raw, len(ran), self._clock(), done)
        except BaseException as err:  # noqa: BLE001 - whatever failed, the engine hears of it
            classified = _classified(err)
            if isinstance(classified, DeviceFatal):
                self._is_dead = True
            classified.__cause__ = None if classified is err else err
            done.set_exception(classified)

    def _pass(self, entries: Sequence[Entry], prepared: ImageBatch | None) -> _Raw:
        with torch.inference_mode():
            if prepared is not None:
                features = self._encoder.encode_images(prepared)
                return _Raw(pooled=_to_numpy(features.pooled), dense=_to_numpy(features.dense))
            strings = [entry.payload for entry in entries if isinstance(entry.payload, str)]
            pooled = _to_numpy(self._encoder.encode_texts(strings).pooled)
        return _Raw(pooled=pooled, dense=np.empty((*pooled.shape, 0, 0), dtype=np.float32))


def _stacked(entries: Sequence[Entry]) -> ImageBatch | None:
    """The encoder's input, padded to the group's bucket; None for strings."""
    group: Group = entries[0].key.group
    if group.kind is Kind.TEXTS:
        return None
    views = [entry.payload for entry in entries if isinstance(entry.payload, View)]
    views += [views[0]] * (group.bucket - len(views))
    return ImageBatch(
        pixels=torch.from_numpy(to_unit_batch([view.pixels for view in views])),
        timesteps=torch.tensor([view.timestep for view in views], dtype=torch.int64),
        captions=[view.caption for view in views],
    )


def _take_apart(raw: _Raw, size: int, finished_s: float, done: "Future[PassResult]") -> None:
    try:
        # Copies: a slice would keep the whole batch alive for as long as one of its answers. In the order it lies in:
        # turning a map round takes four times as long, and only segmentation needs that.
        outputs = [
            Output(pooled=raw.pooled[index].copy(), dense=raw.dense[index].copy(order="K")) for index in range(size)
        ]
    except BaseException as err:  # noqa: BLE001 - as above
        done.set_exception(_classified(err))
    else:
        done.set_result(PassResult(outputs=outputs, finished_s=finished_s))


def _resident_bytes() -> float:
    """Zero where the system does not tell."""
    statm = Path("/proc/self/statm")
    return float(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")) if statm.exists() else 0.0


def _prepare_thread(threads: int, is_one_of_many: bool) -> None:
    # Torch keeps this number by thread.
    if threads:
        torch.set_num_threads(threads)
    if is_one_of_many:
        be_nice(WORKER_NICENESS)


def _to_numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).numpy()
    return array


def _classified(error: BaseException) -> BaseException:
    # CUDA's libraries and driver have words of their own for it; none of them harms the process.
    if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
        # The frames of the failed pass hold its tensors, and the half that is tried next would find no room.
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        return DeviceOutOfMemory("the batch did not fit into the device's memory")
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return DeviceOutOfMemory("the batch did not fit into memory")
    accelerator_error = getattr(torch, "AcceleratorError", ())
    if isinstance(error, accelerator_error) or "CUDA error" in str(error):
        return DeviceFatal("the device reported an error that it cannot recover from")
    return error
