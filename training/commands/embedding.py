"""A bundle as evaluations see it: the encoder that serves, at a task's time step, each picture encoded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.bundle.build import LoadedBundle, load_expert
from models.bundle.manifest import ExpertPart, Manifest
from models.heads.segmentation import SegmentationHead
from models.heads.stitching import ViewProbabilities, blend
from models.transforms import ViewBox, cut_view, plan_views, to_unit
from models.types import ImageBatch
from training.evaluation import baselines, retrieval, segmentation
from training.evaluation.cache import EvaluationCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One line of a table.

    Attributes:
        name: what the table calls it.
        embed: all pictures of a side to features.
        canonical: sees pictures in the service's canonical form, else as rendered.
        centred: its features lose their mean, see `retrieval.measure`.
    """

    name: str
    embed: retrieval.Embed
    canonical: bool = True
    centred: bool = False


def trained(loaded: LoadedBundle, cache: EvaluationCache, task: str, heads: str) -> Contender:
    """The bundle with its heads, at the task's time step."""
    timestep = loaded.info.tasks[task].timestep
    embed = kept(cache, f"{loaded.info.fingerprint} at {timestep}", embedder(loaded, task))
    return Contender(name=f"{loaded.info.name} ({heads} heads)", embed=embed)


def untrained(expert: nn.Module | None, part: ExpertPart | None, cache: EvaluationCache) -> tuple[Contender, ...]:
    """HOG and the expert without training, as they are and in the form that suits each best.

    The last is the floor that the protocols' authors measured.

    Args:
        expert: frozen, without a bundle's adapters.
        part: where it came from, which tells its kept features from those of another.
        cache: of features.
    """
    averaged = kept(cache, repr(part), baselines.expert_embedding(expert))
    hog = kept(cache, "hog 8/16/2", baselines.hog_embedding)
    return (
        Contender(name="HOG", embed=hog),
        Contender(name="HOG, centred", embed=hog, centred=True),
        Contender(name="expert, no training", embed=averaged),
        Contender(name="expert, no training, plain, centred", embed=averaged, canonical=False, centred=True),
    )


def untrained_of(loaded: LoadedBundle, cache: EvaluationCache) -> tuple[Contender, ...]:
    """`untrained` with a bundle's expert as it was before it learnt."""
    part = Manifest.model_validate(loaded.info.manifest).components.expert
    return untrained(load_expert(part, loaded.folder).eval() if part is not None else None, part, cache)


def kept(cache: EvaluationCache, model: str, embed: retrieval.Embed) -> retrieval.Embed:
    """`embed` for any number of pictures, each set of them computed once and kept on disk."""
    return lambda pixels: cache.features(model, embed, pixels)


def embedder(loaded: LoadedBundle, task: str) -> retrieval.Embed:
    """Pictures to the bundle's global features, at the task's time step, as served."""
    timestep = loaded.info.tasks[task].timestep

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        views = torch.from_numpy(np.stack([to_unit(picture) for picture in pixels]))
        return loaded.encoder.encode_images(batch_of(views, timestep)).pooled.numpy()

    return embed


def segmenter(loaded: LoadedBundle) -> segmentation.Segment:
    """Pictures and names to labels, through the views and the stitching that serve `/segment`."""
    profile = loaded.info.tasks["segmentation"]

    def segment(pixels: NDArray[np.uint8], names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        height, width = pixels.shape[:2]
        boxes = plan_views(height, width, profile.resolution)
        views = views_of(pixels, boxes, profile.resolution)
        dense = loaded.encoder.encode_images(batch_of(views, profile.timestep)).dense.numpy()
        texts = class_embeddings(lambda strings: loaded.encoder.encode_texts(strings).pooled, names, profile.templates)
        return stitched(loaded.segmentation_head, boxes, dense, texts, (height, width))

    return segment


def views_of(pixels: NDArray[np.uint8], boxes: Sequence[ViewBox], side: int) -> torch.Tensor:
    """[H, W, 3] uint8 and N boxes → [N, 3, side, side] float32 in [-1, 1]."""
    return torch.from_numpy(np.stack([to_unit(cut_view(pixels, box, side)) for box in boxes]))


def stitched(
    head: SegmentationHead,
    boxes: Sequence[ViewBox],
    dense: NDArray[np.float32],
    texts: NDArray[np.float32],
    size: tuple[int, int],
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Dense maps of views [V, D, h, w] and names [N, D] → labels and confidence, [H, W] each."""
    probabilities = [
        ViewProbabilities(box=box, values=head.probabilities(values, texts))
        for box, values in zip(boxes, dense, strict=True)
    ]
    blended = blend(probabilities, 0, *size)
    return blended.argmax(axis=0).astype(np.uint8), blended.max(axis=0).astype(np.float64)


def batch_of(views: torch.Tensor, timestep: int) -> ImageBatch:
    """Views [B, 3, H, W] without captions, at one time step."""
    return ImageBatch(pixels=views, timesteps=torch.full((len(views),), timestep), captions=[None] * len(views))


def class_embeddings(
    embed: Callable[[Sequence[str]], torch.Tensor], names: Sequence[str], templates: Sequence[str]
) -> NDArray[np.float32]:
    """[N, D] float32, unit length: the mean over the templates, as served."""
    templates = templates or ("{}",)
    strings = [template.replace("{}", name) for name in names for template in templates]
    means = embed(strings).numpy().reshape(len(names), len(templates), -1).mean(axis=1)
    return np.asarray(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12), dtype=np.float32)
