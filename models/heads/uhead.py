"""The U-head: fuses diffusion taps and expert maps from high to low resolution (Vermouth, arXiv 2401.16459, §3.2).

`pooled` comes from the lowest scale by attention pooling; `dense` goes back up over the fused maps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from models.layers import Adapter, AttentionPool, Fuse


@dataclass(frozen=True, slots=True, kw_only=True)
class UHeadScale:
    """One scale of the U-head, from high to low resolution.

    Attributes:
        stride: pixels a cell.
        taps: tap name → channels; maps of another size are resized to this scale.
        expert: channels of the expert's map at this scale; 0 for none.
        width: channels after fusion.
    """

    stride: int
    taps: Mapping[str, int]
    expert: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UHeadConfig:
    """Shape of a U-head.

    Attributes:
        scales: from high to low resolution, each stride twice the one before.
        dimension: D of `pooled` and `dense`.
        dense_width: channels of the top-down path.
        pool_side: side of the map that is attention-pooled.
        pool_heads: attention heads of the pooling.
        groups: of every GroupNorm.
    """

    scales: Sequence[UHeadScale]
    dimension: int
    dense_width: int = 128
    pool_side: int = 4
    pool_heads: int = 8
    groups: int = 16


class UHead(nn.Module):
    """Diffusion taps and expert maps in, one vector and one map in the text space out."""

    def __init__(self, config: UHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.adapters = nn.ModuleList(
            Adapter(scale.expert) if scale.expert else nn.Identity() for scale in config.scales
        )
        fused_from = [0, *(scale.width for scale in config.scales[:-1])]
        self.fuse = nn.ModuleList(
            Fuse(sum(s.taps.values()) + s.expert + before, s.width, groups=config.groups)
            for s, before in zip(config.scales, fused_from, strict=True)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(scale.width, config.dense_width, 1) for scale in config.scales)
        self.smooth = nn.Sequential(
            nn.Conv2d(config.dense_width, config.dense_width, 3, padding=1, bias=False),
            nn.GroupNorm(config.groups, config.dense_width),
            nn.SiLU(),
            nn.Conv2d(config.dense_width, config.dimension, 1),
        )
        self.pool = AttentionPool(
            side=config.pool_side,
            channels=config.scales[-1].width,
            heads=config.pool_heads,
            dimension=config.dimension,
        )

    def forward(
        self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor], *, size: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fuses one batch.

        Args:
            taps: tap name → [B, C, h, w].
            expert: maps of the scales that have one, high to low resolution, [B, C, h, w] each.
            size: (h, w) of the highest scale; default: the first expert map's, else the largest tap's.

        Returns:
            `pooled` [B, D], unit length, and `dense` [B, D, h, w] at the highest scale, not normalised.
        """
        fused = self._fused(taps, expert, size)
        return self._pooled(fused), self._dense(fused)

    def pooled(
        self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor], *, size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """`forward` without the dense path, which is most of its cost: [B, D], unit length."""
        return self._pooled(self._fused(taps, expert, size))

    def _fused(
        self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor], size: tuple[int, int] | None
    ) -> list[torch.Tensor]:
        height, width = size or _finest(taps, expert)
        remaining = iter(expert)
        fused: list[torch.Tensor] = []
        for number, scale in enumerate(self.config.scales):
            shape = (max(1, height >> number), max(1, width >> number))
            parts = [_resized(taps[name], shape) for name in scale.taps]
            if scale.expert:
                parts.append(_resized(self.adapters[number](next(remaining)), shape))
            if fused:
                parts.append(F.adaptive_avg_pool2d(fused[-1], shape))
            fused.append(self.fuse[number](torch.cat(parts, dim=1)))
        return fused

    def _pooled(self, fused: Sequence[torch.Tensor]) -> torch.Tensor:
        return F.normalize(self.pool(F.adaptive_avg_pool2d(fused[-1], self.config.pool_side)), dim=1)

    def _dense(self, fused: Sequence[torch.Tensor]) -> torch.Tensor:
        top: torch.Tensor = self.lateral[-1](fused[-1])
        for number in range(len(fused) - 2, -1, -1):
            top = _resized(top, (fused[number].shape[2], fused[number].shape[3])) + self.lateral[number](fused[number])
        dense: torch.Tensor = self.smooth(top)
        return dense


def _finest(taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor]) -> tuple[int, int]:
    first = expert[0] if expert else max(taps.values(), key=lambda tap: tap.shape[2])
    return first.shape[2], first.shape[3]


def _resized(features: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    if (features.shape[2], features.shape[3]) == shape:
        return features
    return F.interpolate(features, size=shape, mode="bilinear", align_corners=False)
