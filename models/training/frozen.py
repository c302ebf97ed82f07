"""Frozen features of everything heads are trained on, computed once for a prior."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.build import load_extractor
from models.data.dataset import DataSet
from models.pack import MINI_TIMESTEP, prior_manifest
from models.text import load_minilm
from models.training.corpus import to_tensor
from models.training.feature_store import FeatureStore, Maps, build_store
from models.training.scene_views import SceneViews, build_scene_pixels
from models.training.views import ViewSet, build_views

SEEN_SCENES = 1000
UNSEEN_SCENES = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadData:
    """Views with their frozen maps, and scenes with theirs."""

    views: ViewSet
    store: FeatureStore
    scenes: SceneViews


def frozen_features(
    dataset: DataSet, prior: Path, folder: Path, *, seed: int = 0, progress: Callable[[int, float], None]
) -> HeadData:
    """Makes, or opens, everything heads are trained on.

    Args:
        dataset: the data set.
        prior: folder of vae/, unet/ and scheduler/.
        folder: of the caches; those of features carry the prior's digest in their name.
        seed: of the augmentation.
        progress: called with (rows done, 0).
    """
    views = relabelled(build_views(dataset, folder, seed, progress), dataset)
    manifest = prior_manifest(prior)
    extractor = load_extractor(prior, manifest, device=torch.device("cpu"), dtype=torch.float32, taps=manifest.taps)

    def extract(pixels: NDArray[np.uint8]) -> Maps:
        count = len(pixels)
        timesteps = torch.full((count,), MINI_TIMESTEP)
        maps = extractor(to_tensor(pixels), timesteps, [""] * count)
        return {
            **{f"sd.{tap}": values for tap, values in maps.taps.items()},
            **{f"expert.{level}": values for level, values in enumerate(maps.expert)},
        }

    digest = next(iter(manifest.components.unet.source.files.values()))[:12]
    scenes = build_scene_pixels(dataset, folder, seen=SEEN_SCENES, unseen=UNSEEN_SCENES, progress=progress)
    scene_store = build_store(folder / f"scenes-{digest}", iter(scenes.pixels), len(scenes.pixels), extract, progress)
    store = build_store(folder / f"views-{digest}", iter(views.pixels), len(views.pixels), extract, progress)
    names = sorted({name for group in (*scenes.present, *scenes.absent) for name in group})
    return HeadData(
        views=views,
        store=store,
        scenes=SceneViews(
            labels=scenes.labels,
            present=scenes.present,
            absent=scenes.absent,
            is_unseen=scenes.is_unseen,
            embeddings=dict(zip(names, load_minilm().embeddings(names), strict=True)),
            store=scene_store,
        ),
    )


def relabelled(views: ViewSet, dataset: DataSet) -> ViewSet:
    """The views with the data set's present split, so that a stricter split needs no new views."""
    unseen = {(r.hexcode or f"icon:{r.name}") for r in dataset.pictures if r.split == "unseen"}
    unseen |= {code for d in dataset.drawings if d.split == "unseen" for code in (d.hexcodes or (f"word:{d.word}",))}
    flags = [
        old or any(code in unseen for code in codes) for old, codes in zip(views.is_unseen, views.concepts, strict=True)
    ]
    return dataclasses.replace(views, is_unseen=np.array(flags))
