"""The U-head: fuses diffusion taps and expert maps from high to low resolution (Vermouth, arXiv 2401.16459, §3.2).

`dense` goes back up over the fused maps. `pooled` is read from the cells of all maps, place by place, or comes from the
lowest scale by attention pooling, as in the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from models.heads.layers import Adapter, AttentionPool, Fuse
from models.heads.places import PlacesPool, Standard, cells_of

Pooling = Literal["places", "attention"]


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
        pooling: what `pooled` comes from, see the module.
        pool_side: side of the cells that are pooled.
        pool_heads: attention heads, of `attention`.
        pool_width, pool_rank: channels of the cells once and twice fused, of `places`.
        groups: of every GroupNorm.
    """

    scales: Sequence[UHeadScale]
    dimension: int
    dense_width: int = 128
    pooling: Pooling = "attention"
    pool_side: int = 4
    pool_heads: int = 8
    pool_width: int = 512
    pool_rank: int = 128
    groups: int = 16

    @property
    def tap_shapes(self) -> dict[str, "MapShape"]:
        """Every tap, from high to low resolution."""
        return {name: MapShape(count, self._is_fine(s)) for s in self.scales for name, count in s.taps.items()}

    @property
    def expert_shapes(self) -> tuple["MapShape", ...]:
        """The expert's maps, from high to low resolution."""
        return tuple(MapShape(s.expert, self._is_fine(s)) for s in self.scales if s.expert)

    def _is_fine(self, scale: UHeadScale) -> bool:
        return scale.stride < self.scales[-1].stride

    def tap_cells(self, taps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The first channels of what `places` reads, from taps by name: [B, C, side, side]."""
        cells = [cells_of(taps[n], self.pool_side, has_peaks=shape.is_fine) for n, shape in self.tap_shapes.items()]
        return torch.cat(cells, dim=1)

    def expert_cells(self, expert: Sequence[torch.Tensor]) -> torch.Tensor:
        """The last channels of what `places` reads, from the expert's maps: [B, C, side, side]."""
        shapes = zip(expert, self.expert_shapes, strict=True)
        return torch.cat([cells_of(m, self.pool_side, has_peaks=shape.is_fine) for m, shape in shapes], dim=1)


class MapShape(NamedTuple):
    """Channels of a map, and whether it is finer than the last scale."""

    channels: int
    is_fine: bool

    @property
    def cell_channels(self) -> int:
        """Channels of its cells."""
        return self.channels * (2 if self.is_fine else 1)


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
        self.tap_standards = nn.ModuleDict({n: Standard(shape.channels) for n, shape in config.tap_shapes.items()})
        self.expert_standards = nn.ModuleList(Standard(shape.channels) for shape in config.expert_shapes)
        self.pool = _new_pool(config)

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
        pooled = self._attended(fused) if isinstance(self.pool, AttentionPool) else self.pool(self.cells(taps, expert))
        return pooled, self._dense(fused)

    def pooled(self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor]) -> torch.Tensor:
        """`forward` without the dense path, which is most of its cost: [B, D], unit length."""
        if isinstance(self.pool, AttentionPool):
            return self._attended(self._fused(taps, expert, None))
        pooled: torch.Tensor = self.pool(self.cells(taps, expert))
        return pooled

    def dense(self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor]) -> torch.Tensor:
        """`forward` without `pooled`: [B, D, h, w], not normalised."""
        return self._dense(self._fused(taps, expert, None))

    def cells(self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor]) -> torch.Tensor:
        """What `places` reads, [B, C, side, side]; nothing in it is trained."""
        cells = [self.config.tap_cells(taps)] if self.config.tap_shapes else []
        return torch.cat([*cells, self.config.expert_cells(expert)] if expert else cells, dim=1)

    def measure(self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor]) -> None:
        """Takes the standards of the dense path from maps of N views."""
        for name, standard in self.tap_standards.items():
            standard.measure(taps[name])  # type: ignore[operator]  # a module's method, typed as a tensor
        for standard, features in zip(self.expert_standards, expert, strict=True):
            standard.measure(features)  # type: ignore[operator]

    def _fused(
        self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor], size: tuple[int, int] | None
    ) -> list[torch.Tensor]:
        height, width = size or _finest(taps, expert)
        adapted = iter([standard(level) for standard, level in zip(self.expert_standards, expert, strict=True)])
        fused: list[torch.Tensor] = []
        for number, scale in enumerate(self.config.scales):
            shape = (max(1, height >> number), max(1, width >> number))
            parts = [_resized(self.tap_standards[name](taps[name]), shape) for name in scale.taps]
            if scale.expert:
                parts.append(_resized(self.adapters[number](next(adapted)), shape))
            if fused:
                parts.append(F.adaptive_avg_pool2d(fused[-1], shape))
            fused.append(self.fuse[number](torch.cat(parts, dim=1)))
        return fused

    def _attended(self, fused: Sequence[torch.Tensor]) -> torch.Tensor:
        return F.normalize(self.pool(F.adaptive_avg_pool2d(fused[-1], self.config.pool_side)), dim=1)

    def _dense(self, fused: Sequence[torch.Tensor]) -> torch.Tensor:
        top: torch.Tensor = self.lateral[-1](fused[-1])
        for number in range(len(fused) - 2, -1, -1):
            top = _resized(top, (fused[number].shape[2], fused[number].shape[3])) + self.lateral[number](fused[number])
        dense: torch.Tensor = self.smooth(top)
        return dense


def _new_pool(config: UHeadConfig) -> AttentionPool | PlacesPool:
    if config.pooling == "attention":
        return AttentionPool(
            side=config.pool_side,
            channels=config.scales[-1].width,
            heads=config.pool_heads,
            dimension=config.dimension,
        )
    return PlacesPool(
        sum(shape.cell_channels for shape in (*config.tap_shapes.values(), *config.expert_shapes)),
        side=config.pool_side,
        width=config.pool_width,
        rank=config.pool_rank,
        dimension=config.dimension,
        groups=config.groups,
    )


def _finest(taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor]) -> tuple[int, int]:
    first = expert[0] if expert else max(taps.values(), key=lambda tap: tap.shape[2])
    return first.shape[2], first.shape[3]


def _resized(features: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    if (features.shape[2], features.shape[3]) == shape:
        return features
    return F.interpolate(features, size=shape, mode="bilinear", align_corners=False)
