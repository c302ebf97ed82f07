"""The segmentation head: cells of a dense map against class names and a learned background."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F


class SegmentationHead(nn.Module):
    """Cosine to each name, and a background logit that is a linear reading of the cell itself.

    A cell whose best name is a poor match loses to the background, so "none of the named" needs no name.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())
        self.background = nn.Conv2d(dimension, 1, 1)

    def logits(self, dense: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Logits of background and names.

        Args:
            dense: [B, D, h, w].
            texts: [N, D], unit length.

        Returns:
            [B, N + 1, h, w]; channel 0 is the background.
        """
        similarity = torch.einsum("bdhw,nd->bnhw", F.normalize(dense, dim=1), texts)
        return torch.cat([self.background(dense), self.log_scale.exp().clamp(max=100) * similarity], dim=1)

    @torch.inference_mode()
    def probabilities(self, dense: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
        """[D, h, w] and [N, D] float32 → [N + 1, h, w] float32, background first, summing to one."""
        logits = self.logits(torch.from_numpy(dense)[None], torch.from_numpy(texts))
        probabilities: NDArray[np.float32] = logits.softmax(dim=1)[0].numpy()
        return probabilities
