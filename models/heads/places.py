"""Reads frozen maps place by place: what is where tells drawings apart better than what there is on average."""

import torch
from torch import nn
from torch.nn import functional as F


class Standard(nn.Module):
    """Brings channels to mean 0 and deviation 1, by figures measured once: an expert's maps are 30 times a U-Net's.

    In training channels may go missing, so that none is relied on alone: `dropout.p`, 0 unless set.
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
        """Takes mean and deviation from [N, C, h, w]."""
        self.mean.copy_(features.mean(dim=(0, 2, 3), keepdim=True))
        self.rate.copy_(1 / features.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] → the same."""
        out: torch.Tensor = self.dropout((features - self.mean) * self.rate)
        return out


class PlacesPool(nn.Module):
    """Cells of all maps → one vector: fused by 1×1 convolutions, then a linear reading with a weight a place.

    An average, and attention whose one query is the average, forget where things are; on two cores they learnt a third
    as fast (docs/adr/0018).

    In training whole places and fused features may go missing: `place_dropout`, `dropout.p`, 0 unless set.
    """

    def __init__(self, channels: int, *, side: int, width: int, rank: int, dimension: int, groups: int) -> None:
        super().__init__()
        self.place_dropout = 0.0
        self.standard = Standard(channels)
        self.fuse = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, rank, 1, bias=False),
            nn.GroupNorm(groups, rank),
            nn.SiLU(),
        )
        self.dropout = nn.Dropout(0.0)
        self.out = nn.Linear(rank * side * side, dimension)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """[B, C, side, side] → [B, D], unit length."""
        cells = self.standard(cells)
        if self.training and self.place_dropout:
            cells = cells * F.dropout(torch.ones_like(cells[:, :1]), self.place_dropout)
        pooled: torch.Tensor = self.out(self.dropout(self.fuse(cells).flatten(1)))
        return F.normalize(pooled, dim=1)


def cells_of(features: torch.Tensor, side: int, *, has_peaks: bool) -> torch.Tensor:
    """A map brought to side × side places: their means, and for a fine map their maxima too.

    Args:
        features: [B, C, h, w].
        side: places a side.
        has_peaks: whether maxima follow the means; a thin line in a large place is lost to the mean.

    Returns:
        [B, C or 2 C, side, side].
    """
    if features.shape[2] < side or features.shape[3] < side:
        features = F.interpolate(features, size=(side, side), mode="nearest")
    means = F.adaptive_avg_pool2d(features, side)
    return torch.cat([means, F.adaptive_max_pool2d(features, side)], dim=1) if has_peaks else means
