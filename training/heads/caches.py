"""Frozen maps of views, each computed once, in three steps: the expert's, the VAE's latents, and the U-Net's taps.

Of views only the cells that `pooled` reads are stored, a sixth of the maps, so that all of them fit in memory.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle.build import load_extractor
from models.bundle.manifest import Part
from models.bundle.pack import MINI_SIDE, MINI_TIMESTEP, lite0_part, mini_uhead_shape, prior_manifest
from models.bundle.parts import load_classifier, load_expert
from models.encoder import FrozenExtractor
from models.resizing import resized
from training.devices import CPU, batch_size, to_input
from training.heads.feature_store import CLASS_FEATURES, CLASS_MAP, EXPERT_CELLS, TAP_CELLS, Arrays, Maps, build_store
from training.loop import Progress

LATENTS = "latents"

Levels = Sequence[torch.Tensor]
_Encode = Callable[[NDArray[Any]], Maps]


class FrozenCaches:
    """Caches of frozen maps in a folder; their names contain the digests of the weights they depend on.

    Args:
        prior: folder of vae/, unet/ and scheduler/.
        folder: of the caches.
        side: of a view, px. All but the expert's classifier see views of `MINI_SIDE`.
        device: that computes.
        progress: called with (rows done, 0).
    """

    def __init__(
        self, prior: Path, folder: Path, *, side: int = MINI_SIDE, device: torch.device = CPU, progress: Progress
    ) -> None:
        self._prior, self.folder, self.side = prior, folder, side
        self.device, self.progress = device, progress
        self._manifest = prior_manifest(prior, side)

    def cells(self, name: str, pixels: NDArray[np.uint8], *, with_taps: bool = True, room: int = 0) -> Arrays:
        """The cells of some views' maps that a pool reads, and at more than `MINI_SIDE` their `CLASS_FEATURES`."""
        shape = mini_uhead_shape()

        def expert_cells(levels: Levels) -> Maps:
            return {EXPERT_CELLS: shape.expert_cells(levels)}

        # The taps' networks are not even loaded where their rows are all here.
        expert = self._stored(f"{name}-expert", pixels, lambda: self._expert(expert_cells), room)
        if self.side != MINI_SIDE:
            classifier = load_classifier(lite0_part(), self._prior).to(self.device)

            def features(levels: Levels) -> Maps:
                return {CLASS_FEATURES: classifier.features(levels[-1]).mean(dim=(2, 3), keepdim=True)}

            whole = self._stored(f"{name}-classes", pixels, lambda: self._expert(features, side=self.side), room)
            expert = {**expert, **whole}
        if not with_taps:
            return expert

        def tap_cells(maps: Maps) -> Maps:
            return {TAP_CELLS: shape.tap_cells({name.removeprefix("sd."): values for name, values in maps.items()})}

        return {**expert, **self._taps(name, pixels, tap_cells, room)}

    def maps(self, name: str, pixels: NDArray[np.uint8]) -> Arrays:
        """The whole maps of some views, and at more than `MINI_SIDE` their `CLASS_MAP`."""

        def every(levels: Levels) -> Maps:
            return {f"expert.{level}": values for level, values in enumerate(levels)}

        def last(levels: Levels) -> Maps:
            return {CLASS_MAP: levels[-1]}

        found = self._stored(f"{name}-expert", pixels, lambda: self._expert(every))
        if self.side != MINI_SIDE:
            whole = self._stored(f"{name}-classes", pixels, lambda: self._expert(last, side=self.side))
            found = {**found, **whole}
        return {**found, **self._taps(name, pixels, lambda maps: maps)}

    def _taps(self, name: str, pixels: NDArray[np.uint8], form: Callable[[Maps], Maps], room: int = 0) -> Arrays:
        parts = self._manifest.components
        vae, unet = _digest(parts.vae), _digest(parts.unet)
        latents = self._stored(f"{name}-latents-{vae}", pixels, self._latents, room)[LATENTS]
        # Taps depend on the latents, hence on the VAE too.
        key = f"{name}-taps-{vae}{unet}-t{MINI_TIMESTEP}"
        return self._stored(key, latents[: len(pixels)], lambda: self._tapped(form), room)

    def _stored(self, name: str, inputs: NDArray[Any], encoder: Callable[[], _Encode], room: int = 0) -> Arrays:
        size = batch_size(self.device, cpu=8, gpu=1024)  # on a CPU twice as fast as 32
        encode = functools.cache(encoder)
        found = build_store(
            self.folder / name,
            inputs,
            size=size,
            extract=lambda batch: encode()(batch),
            progress=self.progress,
            room=room,
        )
        return {name: array[: len(inputs)] for name, array in found.items()}

    def _expert(self, form: Callable[[Levels], Maps], side: int = MINI_SIDE) -> _Encode:
        """[B, side, side, 3] uint8 → the expert's levels of a view of `side` px in some form."""
        expert = load_expert(lite0_part(), self._prior).eval().to(self.device).to(memory_format=torch.channels_last)

        @torch.inference_mode()
        def encode(pixels: NDArray[Any]) -> Maps:
            view = resized(to_input(torch.from_numpy(np.array(pixels)).to(self.device)), (side, side))
            return form(expert(view))

        return encode

    def _latents(self) -> _Encode:
        """[B, side, side, 3] uint8 → latents."""
        backbone = self._extractor.backbone

        @torch.inference_mode()
        def encode(pixels: NDArray[Any]) -> Maps:
            return {LATENTS: backbone.latents(to_input(torch.from_numpy(np.array(pixels)).to(self.device)))}

        return encode

    def _tapped(self, form: Callable[[Maps], Maps]) -> _Encode:
        """[B, 8, 16, 16] float16 latents → the U-Net's taps in some form, conditioned on the empty caption."""
        extractor = self._extractor
        empty = extractor.text.states([""])  # `mini` has no captioner, so serving conditions on it too

        @torch.inference_mode()
        def tap(latents: NDArray[Any]) -> Maps:
            batch = torch.from_numpy(latents.astype(np.float32)).to(self.device)
            timesteps = torch.full((len(batch),), MINI_TIMESTEP, device=self.device)
            taps = extractor.backbone.taps_of(batch, timesteps, empty.expand(len(batch), -1, -1))
            return form({f"sd.{name}": values for name, values in taps.items()})

        return tap

    @functools.cached_property
    def _extractor(self) -> FrozenExtractor:
        return load_extractor(self._prior, self._manifest, device=self.device, dtype=torch.float32)


def _digest(part: Part) -> str:
    """Eight hex digits of a component's weights and configuration."""
    return hashlib.sha256("".join(sorted(part.source.files.values())).encode()).hexdigest()[:8]
