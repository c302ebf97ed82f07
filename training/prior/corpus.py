"""Pictures the VAE and the U-Net may see, with their captions."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.transforms import render_strokes
from training.data.dataset import DataSet
from training.devices import to_input

_CAPTIONS = {
    "openmoji/picture": "a flat picture of {}",
    "noto/picture": "a glossy emoji of {}",
    "twemoji/picture": "a simple emoji of {}",
    "fluent/picture": "a 3D picture of {}",
    "openmoji/outline": "a black outline drawing of {}",
    "fluent-contrast/outline": "a bold black outline of {}",
    "openclipart/clipart": "clip art of {}",
}
_KIND_WEIGHTS = {"picture": 2.0, "clipart": 1.0, "outline": 1.0, "icon": 0.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Everything training may see.

    Attributes:
        pixels: [N, 128, 128, 3] uint8 RGB.
        captions: N captions, name with style.
        weights: [N] float64 sampling weights, so that six icon weights do not outvote the emoji.
    """

    pixels: NDArray[np.uint8]
    captions: tuple[str, ...]
    weights: NDArray[np.float64]

    def draw(self, count: int, generator: torch.Generator) -> NDArray[np.int64]:
        """`count` row numbers by weight, with replacement."""
        drawn = torch.multinomial(torch.from_numpy(self.weights), count, replacement=True, generator=generator)
        return drawn.numpy()

    def subset(self, count: int, seed: int) -> "Corpus":
        """`count` entries drawn by weight without replacement, equally likely from then on; all when fewer exist."""
        if count >= len(self.captions):
            return self
        generator = torch.Generator().manual_seed(seed)
        rows = torch.multinomial(torch.from_numpy(self.weights), count, generator=generator).numpy()
        return Corpus(
            pixels=self.pixels[rows], captions=tuple(self.captions[row] for row in rows), weights=np.ones(count)
        )


def load_corpus(dataset: DataSet) -> Corpus:
    """Pictures of seen classes, clip art, icons and drawings of seen words, validation drawings left out."""
    rows = dataset.rows(lambda r: r.split in ("seen", "none"))
    drawings = [d for d in dataset.drawings if d.split == "seen" and not d.validation]
    ink = np.stack([render_strokes(d.strokes) for d in drawings])
    pixels = np.concatenate([dataset.pixels[[r.row for r in rows]], np.repeat(ink[..., None], 3, axis=-1)])
    captions = [_caption(r.source, r.kind, r.name) for r in rows]
    captions += [f"a drawing by hand of {d.word}" for d in drawings]
    weights = [_KIND_WEIGHTS[r.kind] for r in rows] + [0.5] * len(drawings)
    return Corpus(pixels=pixels, captions=tuple(captions), weights=np.array(weights))


def _caption(source: str, kind: str, name: str) -> str:
    if kind == "icon":
        return f"a {source.removeprefix('phosphor-')} icon of {name}"
    return _CAPTIONS[f"{source}/{kind}"].format(name)


def to_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """[B, H, W, 3] uint8 RGB as [B, 3, H, W] float32 in [-1, 1], on the CPU."""
    return to_input(torch.from_numpy(np.array(pixels)))
