"""Small building blocks of the heads."""

import torch
from torch import nn
from torch.nn import functional as F


class Fuse(nn.Sequential):
    """1×1 convolution without bias, GroupNorm, SiLU: the paper's fusion block. [B, C_in, h, w] → [B, C_out, h, w]."""

    def __init__(self, channels_in: int, channels_out: int, *, groups: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.GroupNorm(groups, channels_out), nn.SiLU()
        )


class Adapter(nn.Module):
    """Residual bottleneck on a frozen map: 1×1 C→C/4, ReLU, 1×1 C/4→C, added to its input. [B, C, h, w] → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 4, 1)
        self.up = nn.Conv2d(channels // 4, channels, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]  # a convolution built with bias has one

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Adapted features of the same shape."""
        out: torch.Tensor = features + self.up(F.relu(self.down(features)))
        return out


class AttentionPool(nn.Module):
    """CLIP's attention pooling (Radford et al. 2021, §2.4): the mean token asks all tokens.

    [B, C, side, side] → [B, D].
    """

    def __init__(self, *, side: int, channels: int, heads: int, dimension: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(side * side + 1, channels) / channels**0.5)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, dimension)
        self.heads = heads

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The pooled vector, not normalised."""
        tokens = features.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positions
        query, key, value = self.query(tokens[:, :1]), self.key(tokens), self.value(tokens)
        batch, channels = tokens.shape[0], tokens.shape[2]
        split = (batch, -1, self.heads, channels // self.heads)
        # One query: products and sums cost nothing, and unlike the fused kernel's (torch 2.15, two threads) their last
        # bits do not depend on the place in the batch.
        scores = (query.view(split) * key.view(split)).sum(dim=3, keepdim=True) / (channels // self.heads) ** 0.5
        mixed = (scores.softmax(dim=1) * value.view(split)).sum(dim=1)
        pooled: torch.Tensor = self.out(mixed.reshape(batch, channels))
        return pooled
