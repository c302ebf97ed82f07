"""Images that the VAE and the U-Net may see, with their captions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.text import load_minilm
from models.transforms import render_strokes
from training.data.dataset import DataSet
from training.devices import CPU, batch_size, to_input
from training.loop import load_checkpoint, save_checkpoint

CAPTIONS = {
    "openmoji/picture": "a flat picture of {}",
    "noto/picture": "a glossy emoji of {}",
    "twemoji/picture": "a simple emoji of {}",
    "fluent/picture": "a 3D picture of {}",
    "openmoji/outline": "a black outline drawing of {}",
    "fluent-contrast/outline": "a bold black outline of {}",
    "openclipart/clipart": "clip art of {}",
}
# Six icon weights must not outvote the emoji.
_KIND_WEIGHTS = {"picture": 2.0, "clipart": 1.0, "outline": 1.0, "icon": 0.2}
_DRAWING_WEIGHT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Everything the prior is trained on."""

    pixels: NDArray[np.uint8]  # [N, 128, 128, 3] uint8 RGB
    captions: tuple[str, ...]  # N captions, name with style
    weights: NDArray[np.float64]  # [N] float64 sampling weights

    def draw(self, count: int, generator: torch.Generator) -> NDArray[np.int64]:
        """[count] row numbers drawn by weight, with replacement."""
        drawn = torch.multinomial(torch.from_numpy(self.weights), count, replacement=True, generator=generator)
        return drawn.numpy()


def load_corpus(dataset: DataSet) -> Corpus:
    """Images of seen classes, clip art, icons and drawings of seen words, without validation drawings."""
    rows = dataset.rows(lambda r: r.split in ("seen", "none"))
    drawings = [d for d in dataset.drawings if d.split == "seen" and not d.validation]
    sketches = np.stack([render_strokes(d.strokes) for d in drawings])
    pixels = np.concatenate([dataset.pixels[[r.row for r in rows]], np.repeat(sketches[..., None], 3, axis=-1)])
    captions = [_caption(r.source, r.kind, r.name) for r in rows]
    captions += [f"a drawing by hand of {d.word}" for d in drawings]
    weights = [_KIND_WEIGHTS[r.kind] for r in rows] + [_DRAWING_WEIGHT] * len(drawings)
    return Corpus(pixels=pixels, captions=tuple(captions), weights=np.array(weights))


def _caption(source: str, kind: str, name: str) -> str:
    if kind == "icon":
        return f"a {source.removeprefix('phosphor-')} icon of {name}"
    return CAPTIONS[f"{source}/{kind}"].format(name)


def cache_states(
    captions: tuple[str, ...], path: Path, device: torch.device = CPU
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """[S, T, 384] float16 text states of the distinct captions, the empty one first, and the [N] row of each caption.

    The cache file at `path` is reused while it holds the same captions; `device` computes the states.
    """
    distinct = ["", *sorted(set(captions) - {""})]
    rows = {caption: row for row, caption in enumerate(distinct)}
    cached = load_checkpoint(path)
    if cached is None or cached["captions"] != distinct:
        encoder = load_minilm().to(device)
        size = batch_size(device, cpu=64, gpu=1024)
        parts = [encoder.states(distinct[at : at + size]).half().cpu() for at in range(0, len(distinct), size)]
        cached = {"captions": distinct, "states": torch.cat(parts)}
        save_checkpoint(path, cached)
    states: torch.Tensor = cached["states"]
    return states, np.array([rows[caption] for caption in captions])


def to_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """[B, H, W, 3] uint8 RGB as [B, 3, H, W] float32 in [-1, 1], on the CPU."""
    return to_input(torch.from_numpy(np.array(pixels)))


def to_uint8(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """[B, 3, H, W] float in [-1, 1] as [B, H, W, 3] uint8, the inverse of `to_tensor`."""
    scaled = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def save_grid(tiles: NDArray[np.uint8], columns: int, path: Path) -> None:
    """Write [N, H, W, 3] uint8 tiles row by row as one PNG; N is a multiple of `columns`."""
    count, height, width, _ = tiles.shape
    rows = tiles.reshape(count // columns, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    Image.fromarray(rows.reshape(count // columns * height, columns * width, 3)).save(path)
