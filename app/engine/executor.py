"""The one thread that owns the device; nothing else calls the encoder."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from app.domain import Encoder, View
from app.engine.work import Output
from models.types import ImageBatch


class DeviceFatal(Exception):
    """The device is in a state that only a new process can leave."""


class DeviceOutOfMemory(Exception):
    """The batch did not fit; a smaller one may."""


class DeviceExecutor:
    """Runs batches one after another in a thread of its own, in inference mode.

    Args:
        encoder: the two device operations.
        threads: of torch's own pool; 0 leaves its default.
    """

    def __init__(self, encoder: Encoder, *, threads: int = 0) -> None:
        self._encoder = encoder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="device", initializer=partial(_prepare_thread, threads))

    @property
    def fingerprint(self) -> str:
        """Of the encoder."""
        return self._encoder.fingerprint

    async def encode_views(self, views: Sequence[View]) -> list[Output]:
        """One pass over views of one shape.

        Raises:
            DeviceFatal: the process must end.
            DeviceOutOfMemory: too many at once.
            Exception: whatever the encoder raised on this batch.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode_views, views)

    async def encode_texts(self, texts: Sequence[str]) -> list[Output]:
        """One pass over strings. Raises as `encode_views`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode_texts, texts)

    def stop(self) -> None:
        """Wait for the running batch and end the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _encode_views(self, views: Sequence[View]) -> list[Output]:
        with torch.inference_mode():
            try:
                features = self._encoder.encode_images(
                    ImageBatch(
                        pixels=torch.from_numpy(np.stack([view.pixels for view in views])),
                        timesteps=torch.tensor([view.timestep for view in views], dtype=torch.int64),
                        captions=[view.caption for view in views],
                    )
                )
                pooled, dense = _to_numpy(features.pooled), _to_numpy(features.dense)
            except Exception as err:
                raise _classified(err) from err
        # Copies: a slice would keep the whole batch alive in the cache.
        return [Output(pooled=pooled[index].copy(), dense=dense[index].copy()) for index in range(len(views))]

    def _encode_texts(self, texts: Sequence[str]) -> list[Output]:
        with torch.inference_mode():
            try:
                pooled = _to_numpy(self._encoder.encode_texts(texts).pooled)
            except Exception as err:
                raise _classified(err) from err
        nothing = np.empty((pooled.shape[1], 0, 0), dtype=np.float32)
        return [Output(pooled=pooled[index].copy(), dense=nothing) for index in range(len(texts))]


def _prepare_thread(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)


def _to_numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).numpy()
    return array


def _classified(error: Exception) -> Exception:
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return DeviceOutOfMemory("the batch did not fit into the device's memory")
    accelerator_error = getattr(torch, "AcceleratorError", ())
    if isinstance(error, accelerator_error) or "CUDA error" in str(error):
        return DeviceFatal("the device reported an error that it cannot recover from")
    return error
