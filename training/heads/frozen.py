"""Frozen features of everything heads are trained on, each computed once.

In two steps, because the prior changes most often: what needs only the VAE and the expert (most of the time), then
the U-Net's taps, from kept latents. Of views only the cells that `pooled` reads are kept, a sixth of the maps, of
scenes whole maps, so that all of them fit in memory.
"""

import dataclasses
import functools
import hashlib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle.build import load_expert, load_extractor, load_vae
from models.bundle.manifest import Part
from models.bundle.pack import MINI_TIMESTEP, lite0_part, mini_uhead_shape, prior_manifest, vae_part
from models.text import load_minilm
from training.data.dataset import DataSet
from training.devices import CPU, batch_of, to_input
from training.heads.feature_store import (
    EXPERT_CELLS,
    TAP_CELLS,
    DeviceStore,
    FeatureStore,
    Maps,
    build_store,
    in_batches,
    joined,
)
from training.heads.scene_views import ScenePixels, SceneViews, build_scene_pixels
from training.heads.views import ViewSet, build_views, view_parts

SEEN_SCENES, UNSEEN_SCENES = 8000, 2000
SCENES = f"scenes-{SEEN_SCENES}-{UNSEEN_SCENES}"
LATENTS = "latents"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadData:
    """Views with the cells of their frozen maps, and scenes with their maps, on the device that trains.

    Attributes:
        pixels: [N, 128, 128, 3] uint8 of the views, on the device too, for an expert that learns; else None.
        scene_pixels: the same of the scenes, on the disk.
    """

    views: ViewSet
    store: DeviceStore
    pixels: torch.Tensor | None
    scenes: SceneViews
    scene_store: DeviceStore
    scene_pixels: NDArray[np.uint8]

    @property
    def device(self) -> torch.device:
        """That trains."""
        return self.store.device


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInputs:
    """Views and scenes with what does not depend on the U-Net: latents and the expert's maps, each part's apart."""

    views: ViewSet
    view_pixels: tuple[NDArray[np.uint8], ...]
    view_stores: Mapping[str, FeatureStore]
    scenes: ScenePixels
    scene_store: FeatureStore


def frozen_features(
    dataset: DataSet,
    prior: Path,
    folder: Path,
    *,
    seed: int = 0,
    rounds: int = 1,
    device: torch.device = CPU,
    keep_pixels: bool = False,
    progress: Callable[[int, float], None],
) -> HeadData:
    """Makes, or opens, everything heads are trained on.

    Args:
        dataset: the data set.
        prior: folder of vae/, unet/ and scheduler/.
        folder: of the caches; those of features carry the digest of the weights they depend on in their name.
        seed: of the augmentation.
        rounds: how often everything is redrawn.
        device: that computes, and that keeps the maps.
        keep_pixels: whether the views' pixels are put beside them.
        progress: called with (rows done, 0).
    """
    inputs = frozen_inputs(dataset, prior, folder, seed=seed, rounds=rounds, device=device, progress=progress)
    manifest = prior_manifest(prior)
    extractor = load_extractor(prior, manifest, device=device, dtype=torch.float32, taps=manifest.taps)
    nothing = extractor.text.states([""])

    @torch.inference_mode()
    def tap(latents: NDArray[Any]) -> Maps:
        kept = torch.from_numpy(latents.astype(np.float32)).to(device)
        timesteps = torch.full((len(kept),), MINI_TIMESTEP, device=device)
        taps = extractor.backbone.taps_of(kept, timesteps, nothing.expand(len(kept), -1, -1))
        return {f"sd.{name}": values for name, values in taps.items()}

    def tap_cells(latents: NDArray[Any]) -> Maps:
        taps = {name.removeprefix("sd."): values for name, values in tap(latents).items()}
        return {TAP_CELLS: mini_uhead_shape().tap_cells(taps)}

    def taps_of(kind: str, store: FeatureStore, extract: Callable[[NDArray[Any]], Maps]) -> FeatureStore:
        digest = _digest(manifest.components.vae) + _digest(manifest.components.unet)
        tapped = build_store(
            folder / f"{kind}-taps-{digest}-t{MINI_TIMESTEP}",
            store.batches(LATENTS, _batch(device)),
            len(store),
            extract,
            progress,
        )
        return store.without(LATENTS) | tapped

    return HeadData(
        views=inputs.views,
        store=DeviceStore.joined(
            [taps_of(f"{name}-cells", store, tap_cells) for name, store in inputs.view_stores.items()], device
        ),
        pixels=joined(inputs.view_pixels, device) if keep_pixels else None,
        scenes=named_scenes(inputs.scenes),
        scene_store=taps_of(SCENES, inputs.scene_store, tap).on(device),
        scene_pixels=inputs.scenes.pixels,
    )


def named_scenes(scenes: ScenePixels) -> SceneViews:
    """Scenes with the embeddings of their names."""
    names = sorted({name for group in (*scenes.present, *scenes.absent) for name in group})
    return SceneViews(
        labels=scenes.labels,
        present=scenes.present,
        absent=scenes.absent,
        is_unseen=scenes.is_unseen,
        embeddings=dict(zip(names, load_minilm().embeddings(names), strict=True)),
    )


def head_pictures(
    dataset: DataSet,
    folder: Path,
    *,
    seed: int = 0,
    rounds: int = 1,
    workers: int = 1,
    progress: Callable[[int, float], None],
) -> tuple[dict[str, tuple[NDArray[np.uint8], ViewSet]], ScenePixels]:
    """Views, part by part, and scenes: all that needs no network, so it can be made in processes while one trains."""
    parts = {
        part.name: build_views(dataset, part, folder, seed, progress, workers=workers) for part in view_parts(rounds)
    }
    scenes = build_scene_pixels(
        dataset, folder / SCENES, seen=SEEN_SCENES, unseen=UNSEEN_SCENES, progress=progress, workers=workers
    )
    return parts, scenes


def frozen_inputs(
    dataset: DataSet,
    prior: Path,
    folder: Path,
    *,
    seed: int = 0,
    rounds: int = 1,
    device: torch.device = CPU,
    progress: Callable[[int, float], None],
) -> HeadInputs:
    """The first step of `frozen_features`; needs only the prior's vae/, so it can run while the U-Net trains."""
    parts, scenes = head_pictures(dataset, folder, seed=seed, rounds=rounds, progress=progress)
    views = functools.reduce(operator.add, (shown for _, shown in parts.values()))
    part = vae_part(prior)
    vae = load_vae(part, prior).eval().to(device).to(memory_format=torch.channels_last)
    expert = load_expert(lite0_part(), prior).eval().to(device).to(memory_format=torch.channels_last)
    scaling = float(vae.config["scaling_factor"])

    @torch.inference_mode()
    def encode(pixels: NDArray[Any]) -> Maps:
        batch = to_input(torch.from_numpy(np.array(pixels)).to(device))
        levels = {f"expert.{level}": values for level, values in enumerate(expert(batch))}
        return {LATENTS: vae.encode(batch).latent_dist.mean * scaling, **levels}

    def encode_cells(pixels: NDArray[Any]) -> Maps:
        latents, *levels = encode(pixels).values()
        return {LATENTS: latents, EXPERT_CELLS: mini_uhead_shape().expert_cells(levels)}

    def inputs_of(kind: str, pixels: NDArray[np.uint8], extract: Callable[[NDArray[Any]], Maps]) -> FeatureStore:
        batches = in_batches(pixels, _batch(device))
        return build_store(folder / f"{kind}-{_digest(part)}", batches, len(pixels), extract, progress)

    scene_store = inputs_of(SCENES, scenes.pixels, encode)
    return HeadInputs(
        views=relabelled(views, dataset),
        view_pixels=tuple(pixels for pixels, _ in parts.values()),
        view_stores={name: inputs_of(f"{name}-cells", pixels, encode_cells) for name, (pixels, _) in parts.items()},
        scenes=scenes,
        scene_store=scene_store,
    )


def relabelled(views: ViewSet, dataset: DataSet) -> ViewSet:
    """The views with the data set's present split, so that a stricter split needs no new views."""
    unseen = {(r.hexcode or f"icon:{r.name}") for r in dataset.pictures if r.split == "unseen"}
    unseen |= {code for d in dataset.drawings if d.split == "unseen" for code in (d.hexcodes or (f"word:{d.word}",))}
    flags = [
        old or any(code in unseen for code in codes) for old, codes in zip(views.is_unseen, views.concepts, strict=True)
    ]
    return dataclasses.replace(views, is_unseen=np.array(flags))


def _batch(device: torch.device) -> int:
    """Pictures at once: on a CPU eight are twice as fast as 32, since the maps of a batch stay in the cache."""
    return batch_of(device, cpu=8, gpu=1024)


def _digest(part: Part) -> str:
    """Eight hex digits of a component's weights and configuration."""
    return hashlib.sha256("".join(sorted(part.source.files.values())).encode()).hexdigest()[:8]
