"""Goes on training the prior so that what it knows helps the heads: it still predicts noise, and now also sees.

Denoising alone learns slowly what a picture is of; asking the same maps to tell things apart as well makes them say so
after hours instead of weeks (Yu et al. 2024, "Representation Alignment for Generation", arXiv 2410.06940, with the
heads' own losses as the target). Only what the prior may see is used. Afterwards it is frozen as any other.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import nn

from models.pack import MINI_TIMESTEP, TAPS
from models.training.feature_store import MapReader
from models.training.frozen import LATENTS
from models.training.heads import HeadLoss, HeadsModule
from models.training.loop import Schedule, fit
from models.training.scene_views import SceneViews
from models.training.unet import Denoising, new_scheduler
from models.training.views import ViewSet

PAIRS = 48
SCENES = 6
DENOISED = 24


class AlignModule(nn.Module):
    """What is trained together: the whole U-Net and the heads that read it."""

    def __init__(self, unet: UNet2DConditionModel, heads: HeadsModule) -> None:
        super().__init__()
        self.unet = unet
        self.heads = heads


class LiveMaps:
    """A store's maps with taps of a U-Net in training in the place of its latents; noise is drawn anew each time."""

    def __init__(self, unet: UNet2DConditionModel, store: MapReader, nothing: torch.Tensor) -> None:
        """`nothing`: [1, T, C] states of the empty caption."""
        self._unet = unet
        self._store = store
        self._nothing = nothing
        self._scheduler = new_scheduler()
        self._tapped: dict[str, torch.Tensor] = {}
        for tap in TAPS:
            block = unet.mid_block if tap == "mid" else unet.up_blocks[int(tap.removeprefix("up_"))]
            block.register_forward_hook(self._keep(f"sd.{tap}"))

    def read(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Expert maps and live taps of some rows."""
        maps = self._store.read(rows)
        clean = maps.pop(LATENTS)
        timesteps = torch.full((len(rows),), MINI_TIMESTEP)
        noisy = self._scheduler.add_noise(clean, torch.randn_like(clean), timesteps)
        self._unet(noisy, timesteps, encoder_hidden_states=self._nothing.expand(len(rows), -1, -1))
        return maps | self._tapped

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._tapped[name] = output

        return hook


def align_prior(
    module: AlignModule,
    denoising: Denoising,
    views: ViewSet,
    view_inputs: MapReader,
    scenes: SceneViews,
    scene_inputs: MapReader,
    nothing: torch.Tensor,
    embed: Callable[[list[str]], torch.Tensor],
    schedule: Schedule,
    *,
    folder: Path,
    seed: int,
    progress: Callable[[int, float], None],
) -> AlignModule:
    """Trains or goes on training; returns the module with averaged weights. Nothing unseen is drawn.

    Args:
        denoising: the prior's own loss.
        views, scenes: what heads are trained on; their inputs hold latents and the expert's maps row by row.
        nothing: [1, T, C] states of the empty caption.
        embed: names → [G, D] unit embeddings, as served.
    """
    loss = HeadLoss(
        module.heads,
        views,
        LiveMaps(module.unet, view_inputs, nothing),
        scenes,
        LiveMaps(module.unet, scene_inputs, nothing),
        embed,
        with_unseen=False,
    )

    def losses(generator: torch.Generator) -> dict[str, torch.Tensor]:
        asked = loss(generator, pairs=PAIRS, scenes=SCENES)
        return {"mse": denoising(module.unet, DENOISED, generator), **asked}

    torch.manual_seed(seed)
    module.to(memory_format=torch.channels_last)
    module.load_state_dict(fit(module, losses, schedule, folder=folder, seed=seed, progress=progress))
    return module.eval().requires_grad_(False)
