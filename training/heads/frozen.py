"""Frozen features of everything heads are trained on: views and scenes with their maps, on the device that trains."""

import dataclasses
import functools
import operator
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.bundle.pack import mini_uhead_shape
from models.text import load_minilm
from training.data.backgrounds import TRAINING_FAMILIES
from training.data.dataset import DataSet
from training.data.photographs import ImageFiles, concepts_by_thing, concepts_of, photographed_background
from training.data.scenes import EVEN_LAYOUT, TRAINING_LAYOUT
from training.devices import CPU, batch_size, to_input
from training.heads.caches import FrozenCaches
from training.heads.feature_store import EXPERT_CELLS, TAP_CELLS, DeviceStore, in_batches, joined
from training.heads.scene_views import SceneViews, build_scene_views
from training.heads.views import SHARES, ViewSet, build_views, photograph_parts, view_parts
from training.loop import Progress

SEEN_SCENES, UNSEEN_SCENES = 8000, 2000  # unseen ones are for release heads alone
SCENES = f"scenes-{SEEN_SCENES}-{UNSEEN_SCENES}"

Features = Literal["fused", "expert", "diffusion"]
FEATURES: tuple[Features, ...] = ("fused", "expert", "diffusion")
_BLANK: Mapping[Features, str | None] = {"fused": None, "expert": "sd.", "diffusion": "expert."}  # prefix of names


@dataclass(frozen=True, kw_only=True)
class ViewData:
    """Views with the cells of their frozen maps, on the device that trains."""

    views: ViewSet  # what N views show
    store: DeviceStore  # their `TAP_CELLS` and `EXPERT_CELLS`, and `CLASS_FEATURES` where heads join posteriors
    pixels: torch.Tensor | None  # [N, side, side, 3] uint8 of the views, for an expert that learns; else None

    @property
    def device(self) -> torch.device:
        """The device that trains."""
        return self.store.device

    def only(self, features: Features) -> Self:
        """The data with the maps of other features reading as zeros."""
        prefix = _BLANK[features]
        if prefix is None:
            return self
        return dataclasses.replace(self, store=self.store.blank(prefix))


@dataclass(frozen=True, kw_only=True)
class HeadData(ViewData):
    """Views, and scenes with their maps, on the device that trains."""

    scenes: SceneViews  # what M scene views show
    scene_store: DeviceStore  # their maps
    scene_pixels: NDArray[np.uint8] | None  # [M, side, side, 3] uint8, on the CPU, for an expert that learns; else None
    scene_names: Mapping[str, torch.Tensor]  # name → [D] unit embedding of every name that a scene is asked for

    def only(self, features: Features) -> Self:
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
    caches = FrozenCaches(prior, folder, device=device, progress=progress)
    # Parts stay apart on disk and are joined only on the device: a new part leaves the others' caches valid.
    views = functools.reduce(operator.add, (shown for _, shown in parts.values()))
    stores = [caches.cells(name, pixels) for name, (pixels, _) in parts.items()]
    names = scenes.prompts()
    return HeadData(
        views=relabelled(views, dataset),
        store=DeviceStore.joined(stores, device),
        pixels=joined([pixels for pixels, _ in parts.values()], device) if with_pixels else None,
        scenes=scenes,
        scene_store=DeviceStore.joined([caches.maps(SCENES, scene_pixels)], device),
        scene_pixels=scene_pixels,
        scene_names=dict(zip(names, load_minilm().embeddings(names), strict=True)),
    )


def photograph_features(
    dataset: DataSet,
    photographs: ImageFiles,
    sketches: ImageFiles,
    caches: FrozenCaches,
    *,
    shares: int = SHARES,
    with_taps: bool = True,
) -> ViewData:
    """Compute, or open, the views of photographs, sketches and the data set, validation left out.

    Args:
        dataset, photographs, sketches: shown to heads.
        caches: of their maps; they say how large a view is.
        shares: of every part's views, of `SHARES`; fewer for a quicker run.
        with_taps: False leaves the U-Net's cells out, for heads on the expert alone.
    """
    known = concepts_by_thing(dataset)
    unseen = {image.name for files in (photographs, sketches) for image in files.images if image.is_unseen}
    views, stores = [], []
    for part in (*photograph_parts(photographs, sketches, caches.side), *view_parts(1, caches.side)):
        pixels, shown = build_views(dataset, part, caches.folder, seed=0, progress=caches.progress, shares=shares)
        stores.append(caches.cells(part.name, pixels, with_taps=with_taps, room=part.most(dataset)))
        views.append(named(shown, known, unseen))
    store = DeviceStore.joined(stores, caches.device)
    if not with_taps:
        channels = sum(shape.cell_channels for shape in mini_uhead_shape().tap_shapes.values())
        blank = torch.zeros((1, channels, *store.shape(EXPERT_CELLS)[2:]), dtype=torch.float16, device=caches.device)
        store = store.replaced({TAP_CELLS: blank.expand(len(store), -1, -1, -1)})  # takes no memory
    return ViewData(views=relabelled(functools.reduce(operator.add, views), dataset), store=store, pixels=None)


def with_scenes(
    data: ViewData,
    dataset: DataSet,
    caches: FrozenCaches,
    *,
    photographs: ImageFiles,
    others: Mapping[str, tuple[NDArray[np.uint8], SceneViews]],
    scenes: int,
) -> HeadData:
    """Adds scenes: composed ones, half of them on photographs, half as many on even ground, and others.

    Args:
        data: of `photograph_features`.
        dataset: whose emoji are composed.
        caches: of the maps; they say how large a view is.
        photographs: whose backgrounds scenes are composed on.
        others: views of the same side by the name of their cache, see `training.heads.photograph_scenes`.
        scenes: composed without those on even ground, four of five of seen classes.
    """
    background = photographed_background(photographs, is_validation=False)
    families = (*TRAINING_FAMILIES, *[background] * len(TRAINING_FAMILIES))
    layouts = {
        "photographs": (dataclasses.replace(TRAINING_LAYOUT, families=families), scenes),
        "even": (EVEN_LAYOUT, scenes // 2),
    }
    every = {}
    for ground, (layout, count) in layouts.items():
        unseen = count // 5
        name = f"scenes-{count - unseen}-{unseen}-on-{ground}-tiled"
        every[name] = build_scene_views(
            dataset,
            caches.folder / f"{name}-at-{caches.side}",
            seen=count - unseen,
            unseen=unseen,
            side=caches.side,
            layout=layout,
            progress=caches.progress,
        )
    every |= others
    stores = [caches.maps(f"{name}-at-{caches.side}", pixels) for name, (pixels, _) in every.items()]
    shown = functools.reduce(operator.add, (views for _, views in every.values()))
    names = shown.prompts()
    return HeadData(
        views=data.views,
        store=data.store,
        pixels=None,
        scenes=shown,
        scene_store=DeviceStore.joined(stores, data.device),
        scene_pixels=None,
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


def named(views: ViewSet, known: Mapping[str, tuple[str, ...]], unseen: Container[str]) -> ViewSet:
    """The views with what follows from the names of photographs and sketches: concepts, and whether they are unseen."""
    is_named = [kind in ("photograph", "sketch") for kind in views.kinds]
    concepts = [
        concepts_of(name, known) if by_name else codes
        for by_name, name, codes in zip(is_named, views.names, views.concepts, strict=True)
    ]
    hidden = [by_name and name in unseen for by_name, name in zip(is_named, views.names, strict=True)]
    return dataclasses.replace(views, concepts=tuple(concepts), is_unseen=views.is_unseen | np.array(hidden, bool))


def relabelled(views: ViewSet, dataset: DataSet) -> ViewSet:
    """The views with the data set's present split, so that a stricter split needs no new views."""
    unseen = {(r.hexcode or f"icon:{r.name}") for r in dataset.images if r.split == "unseen"}
    unseen |= {code for d in dataset.drawings if d.split == "unseen" for code in (d.hexcodes or (f"word:{d.word}",))}
    flags = [
        old or any(code in unseen for code in codes) for old, codes in zip(views.is_unseen, views.concepts, strict=True)
    ]
    return dataclasses.replace(views, is_unseen=np.array(flags))


def adapted_scenes(expert: nn.Module, data: HeadData) -> DeviceStore:
    """The scenes' maps, with the frozen expert's levels replaced by those of an adapted one.

    Raises:
        ValueError: the data hold no pixels of the scenes.
    """
    if data.scene_pixels is None:
        raise ValueError("an expert learns from the scenes' pixels, too")

    @torch.inference_mode()
    def levels_of(pixels: NDArray[Any]) -> list[torch.Tensor]:
        batch = torch.from_numpy(np.array(pixels)).to(data.device)
        return [level.half() for level in expert(to_input(batch))]

    size = batch_size(data.device, cpu=8, gpu=1024)
    levels = zip(*[levels_of(pixels) for pixels in in_batches(data.scene_pixels, size)], strict=True)
    return data.scene_store.replaced({f"expert.{level}": torch.cat(maps) for level, maps in enumerate(levels)})
