"""Street photographs as scenes of the dense stage: each shows its clothes, among other names of clothes."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.transforms import fit_square
from training.data.clothing import ClothingMasks
from training.data.photographs import shows_unseen
from training.heads.dense import CELLS, SceneViews, cells_of

_CELL_PIXELS = 8  # side of a cell in the map whose most frequent label the cell gets


def clothing_views(
    masks: ClothingMasks, side: int, unseen: Iterable[frozenset[str]] = (), *, seed: int = 0
) -> tuple[NDArray[np.uint8], SceneViews]:
    """Returns [N, side, side, 3] uint8 views of whole photographs, and what they show.

    Args:
        masks: of the photographs.
        side: of a view, px.
        unseen: tokens of unseen names; photographs of clothes named like one are unseen.
        seed: of the absent names.
    """
    hidden = list(unseen)
    is_unseen = {name: shows_unseen(name, hidden) for name in masks.names}
    rng = np.random.default_rng(seed)
    pixels, labels, present, absent = [], [], [], []
    for number in masks.numbers:
        cells = cells_of(_square(masks.cleaned(number), CELLS * _CELL_PIXELS))
        shown = [label for label in np.unique(cells).tolist() if label]
        names = tuple(masks.names[label - 1] for label in shown)
        others = [name for name in masks.names if name not in names]
        pixels.append(fit_square(masks.pixels(number), side))
        labels.append(np.searchsorted([0, *shown], cells).astype(np.uint8))
        present.append(names)
        absent.append(tuple(rng.choice(others, min(len(names), len(others)), replace=False).tolist()))
    flags = np.array([any(is_unseen[name] for name in names) for names in present])
    return np.stack(pixels), SceneViews(
        labels=np.stack(labels), present=tuple(present), absent=tuple(absent), is_unseen=flags
    )


def _square(labels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """[H, W] labels, letterboxed with background as `fit_square` does with white, to [side, side]."""
    height, width = labels.shape
    longest = max(height, width)
    size = (max(1, round(width * side / longest)), max(1, round(height * side / longest)))
    small = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    out = np.zeros((side, side), np.uint8)
    top, left = round((side - size[1]) / 2), round((side - size[0]) / 2)
    out[top : top + size[1], left : left + size[0]] = small
    return out
