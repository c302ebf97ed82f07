"""Photographs as views of the dense stage.

Street photographs show their clothes, among other names of clothes; of the others only the name is known.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.transforms import fit_square
from training.data.clothing import ClothingMasks
from training.data.dataset import SIDE
from training.data.photographs import ImageFiles, NamedImage, shows_unseen, thing
from training.heads.scene_views import CELLS, UNKNOWN, SceneViews, cells_of

_TILES = 3  # of a street photograph, beside the whole of it
_LEAST_ABSENT = 3  # names that a view of clothes is also asked for, even if it shows none
_ABSENT = 9  # names that a photograph of one thing is also asked for
_NEAREST = 20  # names among which half of them are drawn
_CELL_PIXELS = 8  # side of a cell in the map whose most frequent label the cell gets


def clothing_views(
    masks: ClothingMasks, side: int, unseen: Iterable[frozenset[str]] = (), *, seed: int = 0
) -> tuple[NDArray[np.uint8], SceneViews]:
    """Returns [N, side, side, 3] uint8 views of whole photographs and of tiles of them, and what they show.

    Args:
        masks: of the photographs.
        side: of a view, px.
        unseen: tokens of unseen names; photographs of clothes named like one are unseen.
        seed: of the tiles and the absent names.
    """
    hidden = list(unseen)
    is_unseen = {name: shows_unseen(name, hidden) for name in masks.names}
    rng = np.random.default_rng(seed)
    pixels, labels, present, absent = [], [], [], []
    for number in masks.numbers:
        photograph, marked = masks.pixels(number), masks.cleaned(number)
        for cut in (np.s_[:, :], *_tiles(marked.shape, rng)):
            cells = cells_of(_square(marked[cut], CELLS * _CELL_PIXELS))
            shown = [label for label in np.unique(cells).tolist() if label]
            names = tuple(masks.names[label - 1] for label in shown)
            others = [name for name in masks.names if name not in names]
            pixels.append(fit_square(photograph[cut], side))
            labels.append(np.searchsorted([0, *shown], cells).astype(np.uint8))
            present.append(names)
            count = min(max(len(names), _LEAST_ABSENT), len(others))
            absent.append(tuple(rng.choice(others, count, replace=False).tolist()))
    flags = np.array([any(is_unseen[name] for name in names) for names in present])
    return np.stack(pixels), SceneViews(
        labels=np.stack(labels), present=tuple(present), absent=tuple(absent), is_unseen=flags
    )


def named_views(
    files: ImageFiles, side: int, embed: Callable[[list[str]], torch.Tensor], *, each: int, seed: int = 0
) -> tuple[NDArray[np.uint8], SceneViews]:
    """Returns [N, side, side, 3] uint8 views of photographs of one thing each, and what they show: cells are `UNKNOWN`.

    Half of the absent names are among the nearest in the text space. Seen photographs are asked for seen names.

    Args:
        files: photographs; those of validation are left out.
        side: of a view, px.
        embed: names → unit embeddings.
        each: photographs of a name at most.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    by_name: dict[str, list[NamedImage]] = {}
    for image in files.images:
        if image.name and not image.is_validation:
            by_name.setdefault(image.name, []).append(image)
    every = sorted(by_name)
    hidden = {name for name in every if by_name[name][0].is_unseen}
    similarity = (vectors := embed(every).numpy()) @ vectors.T
    pixels, present, absent = [], [], []
    for number, name in enumerate(every):
        others = [every[other] for other in np.argsort(-similarity[number])]
        others = [other for other in others if thing(other) != thing(name) and (name in hidden or other not in hidden)]
        for chosen in rng.permutation(len(by_name[name]))[:each]:
            near = rng.choice(others[:_NEAREST], min(_ABSENT // 2, len(others)), replace=False).tolist()
            far = [other for other in rng.permutation(others).tolist() if other not in near]
            pixels.append(fit_square(files.archive.pixels(by_name[name][chosen].file), side))
            present.append(name)
            absent.append((*near, *far[: _ABSENT - len(near)]))
    return np.stack(pixels), SceneViews(
        labels=np.full((len(pixels), CELLS, CELLS), UNKNOWN, np.uint8),
        present=tuple((name,) for name in present),
        absent=tuple(absent),
        is_unseen=np.array([name in hidden for name in present], bool),
    )


def _tiles(size: tuple[int, ...], rng: np.random.Generator) -> list[tuple[slice, slice]]:
    """Squares of `SIDE` px, as serving cuts them, anywhere in an image of `size` (H, W)."""
    starts = [rng.integers(0, max(0, length - SIDE) + 1, _TILES).tolist() for length in size]
    return [(slice(top, top + SIDE), slice(left, left + SIDE)) for top, left in zip(*starts, strict=True)]


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
