"""A bundle as evaluations see it: the encoder that serves, at a task's time step."""

import numpy as np
import torch
from numpy.typing import NDArray

from models.build import LoadedBundle
from models.evaluation import retrieval
from models.transforms import to_unit
from models.types import ImageBatch


def embedder(loaded: LoadedBundle, task: str) -> retrieval.Embed:
    """Pictures to the bundle's global features, at the task's time step, as served."""
    timestep = loaded.info.tasks[task].timestep

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        views = torch.from_numpy(np.stack([to_unit(picture) for picture in pixels]))
        return loaded.encoder.encode_images(batch_of(views, timestep)).pooled.numpy()

    return embed


def batch_of(views: torch.Tensor, timestep: int) -> ImageBatch:
    return ImageBatch(pixels=views, timesteps=torch.full((len(views),), timestep), captions=[None] * len(views))
