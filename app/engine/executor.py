"""The executor: the threads that own the device, and two that stage its input and split its output."""

import asyncio
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from prometheus_client import Gauge

from app.domain import Encoder, Features, View
from app.engine.entries import Batch, DeviceFatal, DeviceOutOfMemory, Entry, Kind, PassResult
from app.runtime.process import WORKER_NICENESS, be_nice
from models.types import ImageBatch, to_unit_batch

_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")

Array = NDArray[np.float32]


class DeviceExecutor:
    """Runs batches in order, one per worker, in inference mode; implements `entries.Device`.

    A worker is one thread: a CPU has several, any other device has one, for its stream. The batch that waits longest
    goes to the worker that is free first. While passes run, other threads stack the next batch and split the last
    result, and a worker goes from one batch to the next without the loop.

    Args:
        encoder: the two device operations; with several workers it must take calls from several threads.
        workers: passes at once.
        threads: of torch's own pool, per worker; 0 leaves its default.
        clock: the engine's clock.
    """

    def __init__(
        self, encoder: Encoder, *, workers: int = 1, threads: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.fingerprint = encoder.fingerprint
        self.workers = workers
        self._encoder = encoder
        self._clock = clock
        self._is_dead = False
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="device", initializer=_prepare_thread, initargs=(threads, workers > 1)
        )
        self._staging = ThreadPoolExecutor(2, thread_name_prefix="staging")

    def export_memory(self, gauge: Gauge) -> None:
        """Make a gauge read the memory of this process and of the accelerator, if there is one."""
        gauge.labels("resident").set_function(_resident_bytes)
        if torch.cuda.is_available():
            gauge.labels("allocated").set_function(torch.cuda.memory_allocated)
            gauge.labels("reserved").set_function(torch.cuda.memory_reserved)

    def submit(self, batch: Batch) -> "asyncio.Future[PassResult]":
        """Stage the batch now and run it when a worker is free. Raises as `entries.Device`."""
        done: Future[PassResult] = Future()
        # Staging overlaps with the pass that still runs.
        staged = self._staging.submit(_stacked, batch.entries)
        self._pool.submit(self._run, batch, staged, done)
        return asyncio.wrap_future(done)

    def stop(self) -> None:
        """Wait for the running batches, return their results, and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._staging.shutdown(wait=True)

    def _run(self, batch: Batch, staged: "Future[ImageBatch | None]", done: "Future[PassResult]") -> None:
        try:
            if self._is_dead:
                raise DeviceFatal("the device failed before")
            prepared = staged.result()
            ran = batch.begin(self._clock())  # as late as possible: callers may have left since staging
            if not ran:
                done.set_result(PassResult(features=[], finished_s=self._clock()))
                return
            if len(ran) < len(batch.entries):
                prepared = _stacked(ran)
            arrays = self._pass(ran, prepared)
            self._staging.submit(_split, arrays, len(ran), self._clock(), done)
        except BaseException as err:  # noqa: BLE001 - whatever failed, the scheduler must hear of it
            classified = _classified(err)
            if isinstance(classified, DeviceFatal):
                self._is_dead = True
            classified.__cause__ = None if classified is err else err
            done.set_exception(classified)

    def _pass(self, entries: Sequence[Entry], prepared: ImageBatch | None) -> tuple[Array, Array, Array]:
        """`pooled`, `visual` and `dense` of a whole batch, as `Features` has them."""
        with torch.inference_mode():
            if prepared is not None:
                features = self._encoder.encode_images(prepared)
                return _to_numpy(features.pooled), _to_numpy(features.visual), _to_numpy(features.dense)
            strings = [entry.payload for entry in entries if isinstance(entry.payload, str)]
            pooled = _to_numpy(self._encoder.encode_texts(strings).pooled)
        return pooled, np.empty((len(pooled), 0), np.float32), np.empty((*pooled.shape, 0, 0), np.float32)


def _stacked(entries: Sequence[Entry]) -> ImageBatch | None:
    """The encoder's input, padded to the group's bucket; None for strings."""
    group = entries[0].key.group
    if group.kind is Kind.TEXTS:
        return None
    views = [entry.payload for entry in entries if isinstance(entry.payload, View)]
    views += [views[0]] * (group.bucket - len(views))
    return ImageBatch(
        pixels=torch.from_numpy(to_unit_batch([view.pixels for view in views])),
        timesteps=torch.tensor([view.timestep for view in views], dtype=torch.int64),
        captions=[view.caption for view in views],
        needs_dense=group.needs_dense,
        is_reproducible=group.bucket > 0,
    )


def _split(arrays: tuple[Array, Array, Array], count: int, finished_s: float, done: "Future[PassResult]") -> None:
    """Give the first `count` samples of a batch their own arrays; the others padded it."""
    pooled, visual, dense = arrays
    try:
        # Copies: a slice would keep the whole batch alive as long as one of its answers. Memory order "K": a transposed
        # copy takes four times as long, and only segmentation needs the other order.
        features = [
            Features(pooled=pooled[at].copy(), visual=visual[at].copy(), dense=dense[at].copy(order="K"))
            for at in range(count)
        ]
    except BaseException as err:  # noqa: BLE001 - as above
        done.set_exception(_classified(err))
    else:
        done.set_result(PassResult(features=features, finished_s=finished_s))


def _resident_bytes() -> float:
    statm = Path("/proc/self/statm")  # Linux only; elsewhere the gauge is zero
    return float(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")) if statm.exists() else 0.0


def _prepare_thread(threads: int, is_one_of_many: bool) -> None:
    if threads:
        torch.set_num_threads(threads)  # torch keeps this number per thread
    if is_one_of_many:
        be_nice(WORKER_NICENESS)


def _to_numpy(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().to("cpu", torch.float32).numpy()
    return array


def _classified(error: BaseException) -> BaseException:
    # CUDA's libraries and driver use their own words for "no memory"; none of these errors harms the process.
    if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
        # The frames of the failed pass hold its tensors, which would leave no room for the half that runs next.
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        return DeviceOutOfMemory("the batch did not fit into the device's memory")
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return DeviceOutOfMemory("the batch did not fit into memory")
    accelerator_error = getattr(torch, "AcceleratorError", ())
    if isinstance(error, accelerator_error) or "CUDA error" in str(error):
        return DeviceFatal("the device reported an error that it cannot recover from")
    return error
