"""The U-head: fuses diffusion taps and expert maps from high to low resolution (Vermouth, arXiv 2401.16459, §3.2).

`dense` comes from a top-down path over the fused maps. `pooled` comes either from attention pooling of the lowest
scale, as in the paper, or from a grid of cells of all maps (docs/adr/0018).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import nn
from torch.nn import functional as F

Tap = Annotated[str, Field(pattern=r"^(mid|up_[0-9])$")]


class MapShape(NamedTuple):
    """Channels of a map, and whether it is finer than the last scale."""

    channels: int
    is_fine: bool

    @property
    def cell_channels(self) -> int:
        """Channels of its cells: a fine map gives means and maxima."""
        return self.channels * (2 if self.is_fine else 1)


class UHeadScale(BaseModel, extra="forbid", frozen=True):
    """One scale of the U-head.

    Attributes:
        stride: pixels per cell.
        taps: tap name → channels; maps of another size are resized to this scale.
        expert: channels of the expert's map at this scale; 0 if it has none.
        width: channels after fusion.
    """

    stride: int
    taps: dict[Tap, int]
    expert: int
    width: int


class UHeadConfig(BaseModel, extra="forbid", frozen=True):
    """Shape of a U-head, as a bundle's manifest gives it.

    Attributes:
        scales: from high to low resolution, each stride twice the one before.
        dense_width: channels of the top-down path.
        pooling: source of `pooled`: attention over the lowest scale, or a grid of cells (`places`).
        pool_side: cells per side of the pooled grid.
        pool_heads: attention heads, for `attention`.
        pool_width: channels of the cells after the first fusion, for `places`.
        pool_rank: channels of the cells after the second fusion, for `places`.
        groups: groups of every GroupNorm.
    """

    scales: tuple[UHeadScale, ...]
    dense_width: int = 128
    pooling: Literal["places", "attention"] = "attention"
    pool_side: int = 4
    pool_heads: int = 8
    pool_width: int = 512
    pool_rank: int = 128
    groups: int = 16

    @property
    def tap_shapes(self) -> dict[str, MapShape]:
        """Shapes of the taps by name, from high to low resolution."""
        return {name: MapShape(count, self._is_fine(s)) for s in self.scales for name, count in s.taps.items()}

    @property
    def expert_shapes(self) -> tuple[MapShape, ...]:
        """Shapes of the expert's maps, from high to low resolution."""
        return tuple(MapShape(s.expert, self._is_fine(s)) for s in self.scales if s.expert)

    def _is_fine(self, scale: UHeadScale) -> bool:
        return scale.stride < self.scales[-1].stride

    def tap_cells(self, taps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the cells of all taps, [B, C, side, side]: the first channels of `GridPool`'s input."""
        cells = [_cells(taps[n], self.pool_side, has_maxima=shape.is_fine) for n, shape in self.tap_shapes.items()]
        return torch.cat(cells, dim=1)

    def expert_cells(self, expert: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns the cells of the expert's maps, [B, C, side, side]: the last channels of `GridPool`'s input."""
        shapes = zip(expert, self.expert_shapes, strict=True)
        return torch.cat([_cells(m, self.pool_side, has_maxima=shape.is_fine) for m, shape in shapes], dim=1)


class UHead(nn.Module):
    """Maps diffusion taps and expert maps to one vector and one dense map, both of D = `dimension`."""

    def __init__(self, config: UHeadConfig, dimension: int) -> None:
        super().__init__()
        self.config = config
        self.dimension = dimension
        self.adapters = nn.ModuleList(
            Adapter(scale.expert) if scale.expert else nn.Identity() for scale in config.scales
        )
        fused_from = [0, *(scale.width for scale in config.scales[:-1])]  # each scale also gets the finer one
        self.fuse = nn.ModuleList(
            _fusion(sum(s.taps.values()) + s.expert + before, s.width, config.groups)
            for s, before in zip(config.scales, fused_from, strict=True)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(scale.width, config.dense_width, 1) for scale in config.scales)
        self.smooth = nn.Sequential(
            nn.Conv2d(config.dense_width, config.dense_width, 3, padding=1, bias=False),
            nn.GroupNorm(config.groups, config.dense_width),
            nn.SiLU(),
            nn.Conv2d(config.dense_width, dimension, 1),
        )
        self.tap_standards = nn.ModuleDict({n: Standardize(shape.channels) for n, shape in config.tap_shapes.items()})
        self.expert_standards = nn.ModuleList(Standardize(shape.channels) for shape in config.expert_shapes)
        self.pool = AttentionPool(config, dimension) if config.pooling == "attention" else GridPool(config, dimension)

    def forward(
        self,
        taps: Mapping[str, torch.Tensor],
        expert: Sequence[torch.Tensor],
        image_size: tuple[int, int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fuses taps by name and the expert's maps from high to low resolution, [B, C, h, w] each.

        Args:
            taps, expert: as above.
            image_size: height and width of the images, px; None where the finest scale's largest tap, or its expert
                map if it has no taps, has that scale's stride.

        Returns:
            `pooled` [B, D], unit length, and `dense` [B, D, h, w], not normalised, at the finest scale's stride.
        """
        fused = self._fused(taps, expert, image_size)  # once, for both outputs
        pooled = self._attended(fused) if isinstance(self.pool, AttentionPool) else self.pool(self.cells(taps, expert))
        return pooled, self._dense(fused)

    def pooled(self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns `pooled` of `forward`, [B, D], unit length, without the cost of the dense path."""
        if isinstance(self.pool, AttentionPool):
            return self._attended(self._fused(taps, expert))
        pooled: torch.Tensor = self.pool(self.cells(taps, expert))
        return pooled

    def dense(self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns `dense` of `forward`, [B, D, h, w], not normalised."""
        return self._dense(self._fused(taps, expert))

    def cells(self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns the input of `GridPool`, [B, C, side, side]; it depends on no trained weight."""
        cells = [self.config.tap_cells(taps)] if self.config.tap_shapes else []
        return torch.cat([*cells, self.config.expert_cells(expert)] if expert else cells, dim=1)

    def measure(self, taps: Mapping[str, torch.Tensor], expert: Sequence[torch.Tensor]) -> None:
        """Sets the means and deviations of the dense path from maps of N views."""
        for name, standard in self.tap_standards.items():
            standard.measure(taps[name])  # type: ignore[operator]  # a module's method, typed as a tensor
        for standard, features in zip(self.expert_standards, expert, strict=True):
            standard.measure(features)  # type: ignore[operator]

    def _fused(
        self,
        taps: Mapping[str, torch.Tensor],
        expert: Sequence[torch.Tensor],
        image_size: tuple[int, int] | None = None,
    ) -> list[torch.Tensor]:
        if image_size is None:
            has_taps = self.config.scales[0].taps or not expert
            finest = max(taps.values(), key=lambda tap: tap.shape[2]) if has_taps else expert[0]
            height, width = finest.shape[2], finest.shape[3]
        else:
            # Rounded up, as a network with this stride does. All maps of a ViT have one size, whatever their scale.
            height, width = (-(-side // self.config.scales[0].stride) for side in image_size)
        # Standardized first: values of an expert's maps are 30 times those of a U-Net's.
        adapted = iter([standard(level) for standard, level in zip(self.expert_standards, expert, strict=True)])
        fused: list[torch.Tensor] = []
        for number, scale in enumerate(self.config.scales):
            shape = (max(1, height >> number), max(1, width >> number))  # strides double
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
        top: torch.Tensor = self.lateral[-1](fused[-1])  # top-down, as in FPN (Lin et al. 2017)
        for number in range(len(fused) - 2, -1, -1):
            top = _resized(top, (fused[number].shape[2], fused[number].shape[3])) + self.lateral[number](fused[number])
        dense: torch.Tensor = self.smooth(top)
        return dense


class Adapter(nn.Module):
    """Residual bottleneck on a frozen map: 1×1 C→C/4, ReLU, 1×1 C/4→C, added to its input. [B, C, h, w] → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 4, 1)
        self.up = nn.Conv2d(channels // 4, channels, 1)
        nn.init.zeros_(self.up.weight)  # starts as the identity
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]  # a convolution built with bias has one

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns adapted features of the same shape."""
        out: torch.Tensor = features + self.up(F.relu(self.down(features)))
        return out


class Standardize(nn.Module):
    """Scales channels to mean 0 and deviation 1 by figures measured once. [B, C, h, w] → the same.

    `dropout.p`, 0 unless training sets it, drops channels.
    """

    mean: torch.Tensor
    rate: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("rate", torch.ones(1, channels, 1, 1))
        self.dropout = nn.Dropout2d(0.0)

    @torch.no_grad()
    def measure(self, features: torch.Tensor) -> None:
        """Sets mean and deviation from [N, C, h, w]."""
        self.mean.copy_(features.mean(dim=(0, 2, 3), keepdim=True))
        deviation = features.std(dim=(0, 2, 3), keepdim=True)
        # A constant channel, such as one that an ablation left blank, stays out.
        self.rate.copy_(torch.where(deviation > 0, 1 / deviation.clamp(min=1e-3), 0.0))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns standardized features of the same shape."""
        out: torch.Tensor = self.dropout((features - self.mean) * self.rate)
        return out


class AttentionPool(nn.Module):
    """CLIP's attention pooling, with the mean token as the query (Radford et al. 2021, §2.4)."""

    def __init__(self, config: UHeadConfig, dimension: int) -> None:
        super().__init__()
        channels = config.scales[-1].width
        self.positions = nn.Parameter(torch.randn(config.pool_side**2 + 1, channels) / channels**0.5)  # as in CLIP
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, dimension)
        self.heads = config.pool_heads

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, C, side, side] → [B, D], not normalised."""
        tokens = features.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positions
        query, key, value = self.query(tokens[:, :1]), self.key(tokens), self.value(tokens)
        batch, channels = tokens.shape[0], tokens.shape[2]
        split = (batch, -1, self.heads, channels // self.heads)
        # The last bits of the fused kernel depend on the position in the batch (torch 2.15, two threads); these do not.
        scores = (query.view(split) * key.view(split)).sum(dim=3, keepdim=True) / (channels // self.heads) ** 0.5
        mixed = (scores.softmax(dim=1) * value.view(split)).sum(dim=1)
        pooled: torch.Tensor = self.out(mixed.reshape(batch, channels))
        return pooled


class GridPool(nn.Module):
    """Cells of all maps → one vector: fused by 1×1 convolutions, then a linear layer with its own weights per cell.

    An average, and attention whose one query is the average, lose positions (docs/adr/0018). In training
    `cell_dropout` drops whole cells and `dropout.p` fused features; both are 0 unless set.
    """

    def __init__(self, config: UHeadConfig, dimension: int) -> None:
        super().__init__()
        channels = sum(shape.cell_channels for shape in (*config.tap_shapes.values(), *config.expert_shapes))
        self.cell_dropout = 0.0
        self.standard = Standardize(channels)
        self.fuse = nn.Sequential(
            *_fusion(channels, config.pool_width, config.groups),
            *_fusion(config.pool_width, config.pool_rank, config.groups),
        )
        self.dropout = nn.Dropout(0.0)
        self.out = nn.Linear(config.pool_rank * config.pool_side**2, dimension)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """[B, C, side, side] → [B, D], unit length."""
        cells = self.standard(cells)
        if self.training and self.cell_dropout:
            cells = cells * F.dropout(torch.ones_like(cells[:, :1]), self.cell_dropout)  # one mask for all channels
        pooled: torch.Tensor = self.out(self.dropout(self.fuse(cells).flatten(1)))
        return F.normalize(pooled, dim=1)


def _fusion(channels_in: int, channels_out: int, groups: int) -> nn.Sequential:
    """The paper's fusion block: 1×1 convolution without bias, GroupNorm, SiLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.GroupNorm(groups, channels_out), nn.SiLU()
    )


def _cells(features: torch.Tensor, side: int, *, has_maxima: bool) -> torch.Tensor:
    """[B, C, h, w] → [B, C or 2 C, side, side]: the mean of each cell, and its maximum if `has_maxima`."""
    if features.shape[2] < side or features.shape[3] < side:
        features = F.interpolate(features, size=(side, side), mode="nearest")  # pooling cannot enlarge
    means = F.adaptive_avg_pool2d(features, side)
    # A thin line in a large cell is lost in the mean.
    return torch.cat([means, F.adaptive_max_pool2d(features, side)], dim=1) if has_maxima else means


def _resized(features: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    if (features.shape[2], features.shape[3]) == shape:
        return features
    return F.interpolate(features, size=shape, mode="bilinear", align_corners=False)
