"""Frozen features of everything heads are trained on, each computed once.

In two steps, because the U-Net changes most often: what needs only the VAE and the expert (most of the time), then
the U-Net's taps, from cached latents. Of views only the cells that `pooled` reads are stored, a sixth of the maps, of
scenes whole maps, so that all of them fit in memory.
"""

import dataclasses
import functools
import hashlib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle.build import load_extractor
from models.bundle.manifest import Manifest, Part
from models.bundle.pack import MINI_TIMESTEP, lite0_part, mini_uhead_shape, prior_manifest
from models.bundle.parts import load_expert, load_vae
from models.text import load_minilm
from training.data.dataset import DataSet
from training.devices import CPU, batch_size, to_input
from training.heads.dense import SceneViews, build_scene_views
from training.heads.feature_store import EXPERT_CELLS, TAP_CELLS, Arrays, DeviceStore, Maps, build_store, joined
from training.heads.views import ViewSet, build_views, view_parts
from training.loop import Progress

SEEN_SCENES, UNSEEN_SCENES = 8000, 2000  # unseen ones are for release heads alone
SCENES = f"scenes-{SEEN_SCENES}-{UNSEEN_SCENES}"
LATENTS = "latents"

Features = Literal["fused", "expert", "diffusion"]
FEATURES: tuple[Features, ...] = ("fused", "expert", "diffusion")
_BLANK: Mapping[Features, str | None] = {"fused": None, "expert": "sd.", "diffusion": "expert."}  # prefix of names

_Encode = Callable[[NDArray[Any]], Maps]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadData:
    """Views with the cells of their frozen maps, and scenes with their maps, on the device that trains."""

    views: ViewSet  # what N views show
    store: DeviceStore  # their `TAP_CELLS` and `EXPERT_CELLS`
    pixels: torch.Tensor | None  # [N, 128, 128, 3] uint8 of the views, for an expert that learns; else None
    scenes: SceneViews  # what M scene views show
    scene_store: DeviceStore  # their maps
    scene_pixels: NDArray[np.uint8]  # [M, 128, 128, 3] uint8, on the CPU
    scene_names: Mapping[str, torch.Tensor]  # name → [D] unit embedding of every name that a scene is asked for

    @property
    def device(self) -> torch.device:
        """The device that trains."""
        return self.store.device

    def only(self, features: Features) -> "HeadData":
        """The data with the maps of other features reading as zeros."""
        prefix = _BLANK[features]
        if prefix is None:
            return self
        return dataclasses.replace(self, store=self.store.blank(prefix), scene_store=self.scene_store.blank(prefix))


def visible(
    taps: Mapping[str, torch.Tensor], expert: list[torch.Tensor], features: Features
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Frozen maps as heads trained on `features` take them: the others zero."""
    if features == "expert":
        return {name: torch.zeros_like(tap) for name, tap in taps.items()}, expert
    if features == "diffusion":
        return dict(taps), [torch.zeros_like(level) for level in expert]
    return dict(taps), expert


def frozen_features(
    dataset: DataSet,
    prior: Path,
    folder: Path,
    *,
    rounds: int = 1,
    device: torch.device = CPU,
    with_pixels: bool = False,
    progress: Progress,
) -> HeadData:
    """Compute, or open, everything heads are trained on.

    Args:
        dataset: shown to heads.
        prior: folder of vae/, unet/ and scheduler/.
        folder: of the caches. The name of a feature cache contains the digest of the weights it depends on.
        rounds: how often everything is redrawn.
        device: that computes and holds the maps.
        with_pixels: also put the views' pixels on the device.
        progress: called with (rows done, 0).
    """
    parts, (scene_pixels, scenes) = head_images(dataset, folder, rounds=rounds, progress=progress)
    manifest, shape = prior_manifest(prior), mini_uhead_shape()
    encode, tap = _pixel_encoder(prior, manifest, device), _latent_encoder(prior, manifest, device)
    vae, unet = _digest(manifest.components.vae), _digest(manifest.components.unet)
    size = batch_size(device, cpu=8, gpu=1024)  # on a CPU twice as fast as 32

    def encode_cells(pixels: NDArray[Any]) -> Maps:
        latents, *levels = encode(pixels).values()
        return {LATENTS: latents, EXPERT_CELLS: shape.expert_cells(levels)}

    def tap_cells(latents: NDArray[Any]) -> Maps:
        taps = {name.removeprefix("sd."): values for name, values in tap(latents).items()}
        return {TAP_CELLS: shape.tap_cells(taps)}

    def stored(kind: str, pixels: NDArray[np.uint8], encode: _Encode, tap: _Encode) -> Arrays:
        store = functools.partial(build_store, size=size, progress=progress)
        encoded = store(folder / f"{kind}-{vae}", pixels, extract=encode)
        # Taps depend on the latents, hence on the VAE too.
        taps = store(folder / f"{kind}-taps-{vae}{unet}-t{MINI_TIMESTEP}", encoded[LATENTS], extract=tap)
        return {name: maps for name, maps in {**encoded, **taps}.items() if name != LATENTS}

    # Parts stay apart on disk and are joined only on the device: a new part leaves the others' caches valid.
    views = functools.reduce(operator.add, (shown for _, shown in parts.values()))
    stores = [stored(f"{name}-cells", pixels, encode_cells, tap_cells) for name, (pixels, _) in parts.items()]
    names = scenes.prompts()
    return HeadData(
        views=relabelled(views, dataset),
        store=DeviceStore.joined(stores, device),
        pixels=joined([pixels for pixels, _ in parts.values()], device) if with_pixels else None,
        scenes=scenes,
        scene_store=DeviceStore.joined([stored(SCENES, scene_pixels, encode, tap)], device),
        scene_pixels=scene_pixels,
        scene_names=dict(zip(names, load_minilm().embeddings(names), strict=True)),
    )


def head_images(
    dataset: DataSet, folder: Path, *, seed: int = 0, rounds: int = 1, workers: int = 1, progress: Progress
) -> tuple[dict[str, tuple[NDArray[np.uint8], ViewSet]], tuple[NDArray[np.uint8], SceneViews]]:
    """Draw, or open, all views by part, and the scenes: everything that needs no network.

    Seeds belong to images and scenes, so that the result does not depend on the number of `workers` (processes).
    """
    parts = {
        part.name: build_views(dataset, part, folder, seed=seed, progress=progress, workers=workers)
        for part in view_parts(rounds)
    }
    scenes = build_scene_views(
        dataset, folder / SCENES, seen=SEEN_SCENES, unseen=UNSEEN_SCENES, progress=progress, workers=workers
    )
    return parts, scenes


def _pixel_encoder(prior: Path, manifest: Manifest, device: torch.device) -> _Encode:
    """[B, 128, 128, 3] uint8 → latents and the expert's levels."""
    vae = load_vae(manifest.components.vae, prior).eval().to(device).to(memory_format=torch.channels_last)
    expert = load_expert(lite0_part(), prior).eval().to(device).to(memory_format=torch.channels_last)
    scaling = float(vae.config["scaling_factor"])

    @torch.inference_mode()
    def encode(pixels: NDArray[Any]) -> Maps:
        batch = to_input(torch.from_numpy(np.array(pixels)).to(device))
        levels = {f"expert.{level}": values for level, values in enumerate(expert(batch))}
        return {LATENTS: vae.encode(batch).latent_dist.mean * scaling, **levels}

    return encode


def _latent_encoder(prior: Path, manifest: Manifest, device: torch.device) -> _Encode:
    """[B, 8, 16, 16] float16 latents → the U-Net's taps, conditioned on the empty caption."""
    extractor = load_extractor(prior, manifest, device=device, dtype=torch.float32)
    empty = extractor.text.states([""])  # `mini` has no captioner, so serving conditions on it too

    @torch.inference_mode()
    def tap(latents: NDArray[Any]) -> Maps:
        batch = torch.from_numpy(latents.astype(np.float32)).to(device)
        timesteps = torch.full((len(batch),), MINI_TIMESTEP, device=device)
        taps = extractor.backbone.taps_of(batch, timesteps, empty.expand(len(batch), -1, -1))
        return {f"sd.{name}": values for name, values in taps.items()}

    return tap


def relabelled(views: ViewSet, dataset: DataSet) -> ViewSet:
    """The views with the data set's present split, so that a stricter split needs no new views."""
    unseen = {(r.hexcode or f"icon:{r.name}") for r in dataset.images if r.split == "unseen"}
    unseen |= {code for d in dataset.drawings if d.split == "unseen" for code in (d.hexcodes or (f"word:{d.word}",))}
    flags = [
        old or any(code in unseen for code in codes) for old, codes in zip(views.is_unseen, views.concepts, strict=True)
    ]
    return dataclasses.replace(views, is_unseen=np.array(flags))


def _digest(part: Part) -> str:
    """Eight hex digits of a component's weights and configuration."""
    return hashlib.sha256("".join(sorted(part.source.files.values())).encode()).hexdigest()[:8]
