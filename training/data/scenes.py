"""Composed scenes: objects cut out by their transparency, pasted on procedural backgrounds.

The `scenes` protocol of the evaluation and the training of the dense head share this generator, but never its seeds,
its held-out textures or its images. A scene is a pure function of (pool, layout, seed, index, side).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import DataError
from training.data.backgrounds import (
    EVEN_FAMILIES,
    HELD_OUT_FAMILIES,
    TEXTURES,
    TRAINING_FAMILIES,
    Family,
    render_background,
)
from training.data.dataset import DataSet, ImageRecord

SCENE_SIDE = 256  # side of a scene of the protocol, px
TRAINING_SEED = 20260101  # first word of every training scene's seed; the second is the scene's index
VALIDATION_SEED = 20260202
"""For choices made during training (seen classes, training styles), such as temperature or stopping."""
EVALUATION_SEED = 20261231  # for the reported figures only
_LEAST_VISIBLE = 0.3  # of every object
_OPAQUE = 128  # least alpha of a pixel that carries its object's label
_TRIES_PER_OBJECT = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Bounds of what a scene shows."""

    families: tuple[Family, ...]  # textures to choose from
    counts: tuple[int, int]  # least and most objects
    sizes: tuple[float, float]  # least and most of an object's longer side, as a share of the scene's


EVALUATION_LAYOUT = Layout(families=(*TEXTURES, *HELD_OUT_FAMILIES), counts=(3, 5), sizes=(0.35, 0.6))
TRAINING_LAYOUT = Layout(families=TRAINING_FAMILIES, counts=(1, 5), sizes=(0.3, 0.75))
"""Wider than the protocol's: many users send an image of a single thing on white."""
EVEN_LAYOUT = Layout(families=EVEN_FAMILIES, counts=(1, 2), sizes=(0.3, 0.9))
"""Tiles of these show an even ground and a part of an object, which those of other scenes hardly ever do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectClass:
    """A name and the data set's rows that show it."""

    name: str
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenePool:
    """Objects that scenes are composed of."""

    pixels: NDArray[np.uint8]  # [N, s, s, 3] uint8 on white
    alpha: NDArray[np.uint8]  # [N, s, s] uint8
    classes: tuple[ObjectClass, ...]  # at least 10, names distinct


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A composed image and its true labels."""

    pixels: NDArray[np.uint8]  # [S, S, 3] uint8 RGB
    labels: NDArray[np.uint8]  # [S, S] uint8: 0 background, i + 1 the pixels of `present[i]`
    present: tuple[str, ...]  # names of the objects
    absent: tuple[str, ...]  # as many names of the same pool that the scene does not show

    @property
    def prompts(self) -> tuple[str, ...]:
        """`present` then `absent`: label i + 1 is prompt i."""
        return self.present + self.absent


def build_pool(data: DataSet, records: Iterable[ImageRecord]) -> ScenePool:
    """Objects of the given images, grouped by name.

    Raises:
        DataError: fewer than 10 names, so that present and absent names would overlap.
    """
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for record in records:
        rows[record.name].append(record.row)
    least = 2 * EVALUATION_LAYOUT.counts[1]
    if len(rows) < least:
        raise DataError(f"scenes need images of at least {least} names, not {len(rows)}")
    classes = tuple(ObjectClass(name=name, rows=tuple(rows[name])) for name in sorted(rows))
    return ScenePool(pixels=data.pixels, alpha=data.alpha, classes=classes)


def seen_training_pool(data: DataSet) -> ScenePool:
    """Colour emoji of the seen classes in the four training styles, all that zero-shot heads may train on."""
    return build_pool(data, data.rows(lambda r: r.kind == "picture" and r.split == "seen"))


def seen_evaluation_pool(data: DataSet) -> ScenePool:
    """Seen classes in Fluent's flat style, which no training uses."""
    seen = {r.hexcode for r in data.images if r.split == "seen"}
    return build_pool(data, data.rows(lambda r: r.split == "evaluation" and r.hexcode in seen))


def unseen_evaluation_pool(data: DataSet) -> ScenePool:
    """Unseen classes in the four training styles: zero-shot heads saw neither the names nor the images."""
    unseen = {r.hexcode for r in data.images if r.split == "unseen" and r.hexcode is not None}
    return build_pool(data, data.rows(lambda r: r.kind == "picture" and r.split == "unseen" and r.hexcode in unseen))


def compose_training_scene(
    pool: ScenePool, index: int, *, seed: int = TRAINING_SEED, layout: Layout = TRAINING_LAYOUT
) -> Scene:
    """Training scene number `index`, of 256 px."""
    return compose_scene(pool, layout, seed=seed, index=index, side=SCENE_SIDE)


def compose_evaluation_scene(pool: ScenePool, index: int, layout: Layout = EVALUATION_LAYOUT) -> Scene:
    """Evaluation scene number `index`, of 256 px, with all texture families unless `layout` names others."""
    return compose_scene(pool, layout, seed=EVALUATION_SEED, index=index, side=SCENE_SIDE)


def compose_scene(pool: ScenePool, layout: Layout, *, seed: int, index: int, side: int) -> Scene:
    """Compose a scene: objects of different names, wholly inside, at least 30 % of each visible.

    Args:
        pool: objects.
        layout: backgrounds, and how many objects of which size.
        seed: first word of the random seed.
        index: second word, the scene's number.
        side: of the scene, px.
    """
    generator = np.random.default_rng([seed, index])
    # A layout that hides an object is thrown away whole, with its objects.
    while True:
        count = int(generator.integers(layout.counts[0], layout.counts[1] + 1))
        chosen = generator.choice(len(pool.classes), size=2 * count, replace=False)
        present = [pool.classes[int(i)] for i in chosen[:count]]
        cutouts = [_cut_out(pool, generator, c, side, layout.sizes) for c in present]
        corners = _arranged(cutouts, generator, side)
        if corners is not None:
            break
    canvas = render_background(generator, side, layout.families).astype(np.float32)
    labels = np.zeros((side, side), dtype=np.uint8)
    for label, (cutout, (top, left)) in enumerate(zip(cutouts, corners, strict=True), 1):
        height, width = cutout.alpha.shape
        part = np.s_[top : top + height, left : left + width]
        # On white a pixel is a·c + (1 - a)·255, so pasting needs no division by alpha.
        canvas[part] = cutout.pixels + (1 - cutout.alpha[:, :, None] / 255) * (canvas[part] - 255)
        labels[part][cutout.alpha >= _OPAQUE] = label
    return Scene(
        pixels=np.clip(np.round(canvas), 0, 255).astype(np.uint8),
        labels=labels,
        present=tuple(c.name for c in present),
        absent=tuple(pool.classes[int(i)].name for i in chosen[count:]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cutout:
    """An object at its size in the scene: pixels [h, w, 3] float32 on white, alpha [h, w] float32 in 0–255."""

    pixels: NDArray[np.float32]
    alpha: NDArray[np.float32]


def _cut_out(
    pool: ScenePool, generator: np.random.Generator, of: ObjectClass, side: int, sizes: tuple[float, float]
) -> _Cutout:
    row = of.rows[int(generator.integers(len(of.rows)))]
    target = generator.uniform(*sizes) * side
    alpha = np.asarray(pool.alpha[row])
    ys, xs = np.nonzero(alpha >= _OPAQUE)
    if not len(ys):
        raise DataError(f"row {row} of the data set ('{of.name}') is wholly transparent")
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    scale = target / max(box[2] - box[0], box[3] - box[1])
    size = (max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale)))

    def resized(values: NDArray[np.uint8]) -> NDArray[np.float32]:
        image = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC, box=box)
        return np.asarray(image, dtype=np.float32)

    return _Cutout(pixels=resized(np.asarray(pool.pixels[row])), alpha=resized(alpha))


def _arranged(cutouts: list[_Cutout], generator: np.random.Generator, side: int) -> list[tuple[int, int]] | None:
    """Top-left corners that leave enough of every object visible, or None when tries run out."""
    owner = np.full((side, side), -1, dtype=np.int8)
    totals = [int((c.alpha >= _OPAQUE).sum()) for c in cutouts]
    corners: list[tuple[int, int]] = []
    for number, cutout in enumerate(cutouts):
        height, width = cutout.alpha.shape
        for _ in range(_TRIES_PER_OBJECT):
            top = int(generator.integers(side - height + 1))
            left = int(generator.integers(side - width + 1))
            after = owner.copy()
            after[top : top + height, left : left + width][cutout.alpha >= _OPAQUE] = number
            visible = np.bincount(after[after >= 0], minlength=number + 1)
            # A new object may hide earlier ones, so all of them are counted again.
            if all(visible[i] >= _LEAST_VISIBLE * totals[i] for i in range(number + 1)):
                owner = after
                corners.append((top, left))
                break
        else:
            return None
    return corners
