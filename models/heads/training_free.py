"""A segmentation head without training: cells of a dense map against names and generic backgrounds."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

# What surrounds things in photographs and drawings; as in the lists that open-vocabulary
# segmentation compares with (SCLIP, Wang et al. 2024), without names that users ask for.
BACKGROUNDS = (
    "background",
    "a plain background",
    "a white background",
    "a blurred background",
    "an empty surface",
    "a texture",
)
SAME = 0.95  # cosine similarity from which a background counts as one of the names


class TrainingFreeHead:
    """Scores names and the background by cosine similarity; implements `app.tasks.segmentation.SegmentationHead`.

    A cell is background where a generic background is more similar to it than every name.

    Args:
        backgrounds: [M, D] float32, unit length: embeddings of `BACKGROUNDS`.
        temperature: of the softmax over names.
    """

    def __init__(self, backgrounds: NDArray[np.float32], temperature: float) -> None:
        self._backgrounds = torch.from_numpy(backgrounds)
        self._temperature = temperature

    @torch.inference_mode()
    def probabilities(self, dense: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the probabilities of the background and of each name.

        Args:
            dense: [D, h, w] float32.
            texts: [N, D] float32, unit length.

        Returns:
            [N + 1, h, w] float32, background first, summing to one.
        """
        size, height, width = dense.shape
        names = torch.from_numpy(texts)
        cells = F.normalize(torch.from_numpy(np.ascontiguousarray(dense)).view(size, -1), dim=0)
        # Who asks for "a white background" means it as a class.
        is_asked = (self._backgrounds @ names.T).amax(dim=1) >= SAME
        similarity = self._backgrounds @ cells
        similarity[is_asked] = -1
        logits = torch.cat([similarity.amax(dim=0, keepdim=True), names @ cells]) / self._temperature
        probabilities: NDArray[np.float32] = logits.softmax(dim=0).view(-1, height, width).numpy()
        return probabilities
