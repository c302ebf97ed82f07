"""Features without trained heads: CLIP's image embedding, Stable Diffusion's maps and its self-attention."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models.backbone import StableDiffusionBackbone
from models.clip import ClipImages
from models.errors import BundleError


class SelfAttention:
    """The last self-attention of a U-Net block, as probabilities, without changing the pass.

    The library computes attention fused and returns no probabilities. Hooks store its queries and keys, from which
    `probabilities` computes them again. Not thread-safe.

    Raises:
        BundleError: the block has no self-attention, or the U-Net was cut before it.
    """

    def __init__(self, unet: nn.Module, tap: str) -> None:
        blocks: Any = unet
        number = -1 if tap == "mid" else int(tap.removeprefix("up_"))
        block = blocks.mid_block if tap == "mid" else dict(enumerate(blocks.up_blocks)).get(number)
        layers = getattr(block, "attentions", None)
        if not layers:
            raise BundleError(f"the block '{tap}' of this U-Net has no self-attention, or no tap reaches it")
        attention = layers[-1].transformer_blocks[-1].attn1
        self.heads = int(attention.heads)
        self._scale = float(attention.scale)
        self._stored: dict[str, torch.Tensor] = {}
        layers[-1].register_forward_pre_hook(lambda _module, inputs: self._stored.__setitem__("map", inputs[0]))
        for name in ("to_q", "to_k"):
            getattr(attention, name).register_forward_hook(self._hook(name))

    def discard(self) -> None:
        """Releases what the hooks stored, after a pass that needs no probabilities."""
        self._stored.clear()

    def probabilities(self) -> tuple[torch.Tensor, tuple[int, int]]:
        """Returns softmax(q kᵀ / √d) of the last pass, mean over heads, and the size of its map.

        Returns:
            [B, h · w, h · w] float32, rows summing to one, and (h, w).
        """
        queries, keys, features = (self._stored.pop(name) for name in ("to_q", "to_k", "map"))
        size = (int(features.shape[2]), int(features.shape[3]))
        mean: torch.Tensor | None = None
        # One head at a time: at 64² cells the probabilities of eight would take half a gigabyte an image.
        for query, key in zip(queries.chunk(self.heads, dim=2), keys.chunk(self.heads, dim=2), strict=True):
            scores = query @ key.transpose(1, 2) * self._scale
            share = scores.float().softmax(dim=2) / self.heads
            mean = share if mean is None else mean + share
        if mean is None:
            raise RuntimeError("an attention without heads")
        return mean, size

    def _hook(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._stored[name] = output

        return hook


class TrainingFreeNetwork(nn.Module):
    """One whole pass without trained heads.

    `pooled` is CLIP's image embedding. `visual` joins a diffusion map and CLIP (SketchFusion, Koley et al. 2025,
    found that they complement each other for sketches). `dense` holds CLIP's patch features, which the U-Net's
    self-attention makes follow the shapes in the image (as in CLIPer, Sun et al. 2024).

    Args:
        backbone: taps `tap`.
        clip: the image tower, on its device and in its precision.
        tap: its mean over cells is the diffusion half of `visual`.
        tap_channels: of that map.
        diffusion_weight, clip_weight: of the halves of `visual`.
        refined_by: block whose self-attention refines `dense`; None leaves it as it is.
        dense_side: images of at least this side get `dense` from a CLIP view of their own size, px; smaller ones from
            the view of their embedding, which costs nothing more.

    Raises:
        BundleError: as `SelfAttention`.
    """

    def __init__(
        self,
        backbone: StableDiffusionBackbone,
        clip: ClipImages,
        *,
        tap: str,
        tap_channels: int,
        diffusion_weight: float,
        clip_weight: float,
        refined_by: str | None,
        dense_side: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.clip = clip
        self.tap = tap
        self.tap_channels = tap_channels
        self.weights = (diffusion_weight, clip_weight)
        self.dense_side = dense_side
        self.attention = None if refined_by is None else SelfAttention(backbone.unet, refined_by)

    @property
    def dimension(self) -> int:
        """D, the length of `pooled`."""
        return self.clip.dimension

    @property
    def visual_dimension(self) -> int:
        """V, the length of `visual`."""
        return self.tap_channels + self.clip.dimension

    def without_dense(self) -> nn.Module:
        """Returns the pass for batches that do not need `dense`: it spares a view of CLIP and the attention."""
        return _WithoutDense(self)

    def forward(self, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the pass; arguments as `StableDiffusionBackbone.forward`.

        Returns:
            `pooled`, `visual` and `dense` of `ImageFeatures`, on the device.
        """
        pooled, visual, patches = self.globals_and_patches(pixels, timesteps, states)
        side = int(pixels.shape[2])
        if side >= self.dense_side:
            patches = self.clip.patches(pixels, self.clip.whole_side(side))
        return pooled, visual, self._refined(F.normalize(patches.float(), dim=1))

    def globals_and_patches(
        self, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns `pooled`, `visual`, and the patch features of the view that CLIP embeds, [B, D, h, w]."""
        taps = self.backbone(pixels, timesteps, states)
        embeddings, patches = self.clip(pixels)
        pooled = F.normalize(embeddings.float(), dim=1)
        diffusion = F.normalize(taps[self.tap].float().mean(dim=(2, 3)), dim=1)
        visual = torch.cat([self.weights[0] * diffusion, self.weights[1] * pooled], dim=1)
        return pooled, F.normalize(visual, dim=1), patches

    def _refined(self, patches: torch.Tensor) -> torch.Tensor:
        """Patch features [B, D, h, w] averaged over the cells that the U-Net's self-attention joins."""
        if self.attention is None:
            return patches
        probabilities, size = self.attention.probabilities()
        cells = F.interpolate(patches, size=size, mode="bilinear", align_corners=False).flatten(2)
        return (cells @ probabilities.transpose(1, 2)).reshape(*cells.shape[:2], *size)


class _WithoutDense(nn.Module):
    """A pass of a training-free network that ends with `pooled` and `visual`."""

    def __init__(self, network: TrainingFreeNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled, visual, _ = self.network.globals_and_patches(pixels, timesteps, states)
        if self.network.attention is not None:
            self.network.attention.discard()
        return pooled, visual
