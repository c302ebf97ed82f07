"""Few-shot classification by prototypes (Snell et al. 2017), with cosine in place of the Euclidean distance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LOGIT_SCALE = 20.0


class PrototypeHead:
    """Compares queries with the normalised mean of each way's support."""

    def __init__(self, logit_scale: float = LOGIT_SCALE) -> None:
        self._logit_scale = logit_scale

    def probabilities(
        self, support: Sequence[NDArray[np.float32]], queries: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Softmax over scaled cosines.

        Args:
            support: N ways of [K, D], unit rows.
            queries: [B, D], unit rows.

        Returns:
            [B, N] float32, rows summing to one.
        """
        logits = self._logit_scale * queries @ prototypes(support).T
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float32)


def prototypes(support: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The normalised mean of each way's [K, D] support: [N, D] float32."""
    means = np.stack([way.mean(axis=0) for way in support])
    return np.asarray(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12), dtype=np.float32)
