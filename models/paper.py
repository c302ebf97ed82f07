"""The paper of a drawn raster: its tone or a smooth surface of it, and what stands out from it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

INK_NOISE = 4.0
"""Ink differs from the paper by at least so many times the noise …"""
MAX_THRESHOLD = 0.8
"""… and that must be less than this share of the largest difference there is."""
_SAMPLE_MARGIN = 0.9
_PAPER_SAMPLES = 128
_STRIP_PIXELS = 1 << 15
_CUBIC = [4 * i + j for i in range(4) for j in range(4 - i)]
"""Of the 16 products of four powers each way, those of degree three or less."""
_EVEN_TONE = 4.0
_EVEN_FRAME = 0.75
_VIVID_CHROMA = 90.0
_VIVID_BRIGHTNESS = 190.0
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)

P = TypeVar("P", np.uint8, np.bool_)


def frame_tone(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> tuple[NDArray[np.float32], bool]:
    """The median tone of the raster's outermost pixels, [3], and whether all have it: no camera has seen those."""
    edge = max(1, round(0.01 * max(low.shape[:2])))
    darkest, lightest = _channels(frame(low, edge)), _channels(frame(high, edge))
    tone: NDArray[np.float32] = np.median((darkest + lightest) / 2, axis=1)
    is_even = np.maximum(tone[:, None] - darkest, lightest - tone[:, None]).max(axis=0) <= _EVEN_TONE
    return tone, bool(is_even.mean() >= _EVEN_FRAME)


def frame(pixels: NDArray[P], edge: int) -> NDArray[P]:
    """The outermost `edge` pixels on every side: [H, W, C] → [N, C]."""
    channels = pixels.shape[2]
    if min(pixels.shape[:2]) <= 2 * edge:
        return pixels.reshape(-1, channels)
    sides = (pixels[:edge], pixels[-edge:], pixels[edge:-edge, :edge], pixels[edge:-edge, -edge:])
    return np.concatenate([side.reshape(-1, channels) for side in sides])


def is_vivid(tone: NDArray[np.float32]) -> bool:
    """Whether a tone is a colour that nobody draws on: the ground of a sign or a button."""
    return float(np.ptp(tone)) > _VIVID_CHROMA and float(tone @ _LUMINANCE) < _VIVID_BRIGHTNESS


def contrast_to_tone(low: NDArray[np.uint8], high: NDArray[np.uint8], tone: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest channel difference to one tone."""
    contrast = np.zeros(low.shape[:2], np.float32)
    for rows in strips(low):
        for channel in range(3):
            _widen(contrast[rows], low[rows, :, channel], high[rows, :, channel], tone[channel])
    return contrast


@dataclass(frozen=True, slots=True)
class Paper:
    """A cubic surface a channel, fitted robustly to the paper.

    Attributes:
        surface: [3, 16], a weight for each product of powers.
        tones: [3, S], of the surface at the sampled pixels.
        contrast: [S], of the middle of the sampled pixels to it: never more than theirs.
    """

    surface: NDArray[np.float64]
    tones: NDArray[np.float64]
    contrast: NDArray[np.float64]


def fitted_paper(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> Paper:
    """The paper under a raster, from 128 × 128 of its pixels; `low` and `high` are extremes of blocks."""
    height, width = low.shape[:2]
    here = np.ix_(_sampled(height), _sampled(width))
    values = (_channels(low[here].reshape(-1, 3)) + _channels(high[here].reshape(-1, 3))) / 2
    terms = _terms(height, width)
    distance = np.abs(values - np.median(values, axis=1, keepdims=True)).max(axis=0)
    for _ in range(6):
        kept = terms * (distance <= max(8.0, float(np.quantile(distance, 0.6))))
        # Ten unknowns: the normal equations are as exact here and ten times as fast as an SVD of all rows.
        weights, *_ = np.linalg.lstsq(kept @ kept.T, kept @ values.T, rcond=1e-12)
        fitted = weights.T @ terms
        distance = np.abs(values - fitted).max(axis=0)
    surface = np.zeros((3, 16))
    surface[:, _CUBIC] = weights.T
    tones = np.clip(fitted, 0, 255)
    return Paper(surface, tones, np.abs(values - tones).max(axis=0))


def is_all_noise(low: NDArray[np.uint8], high: NDArray[np.uint8], paper: Paper) -> bool:
    """Whether a sample shows already that nothing will stand out from the noise: so end most photographs."""
    # Along the rows first: over both sides at once NumPy takes ten times as long.
    above = high.max(axis=0).max(axis=0) - paper.tones.min(axis=1)
    below = paper.tones.max(axis=1) - low.min(axis=0).min(axis=0)
    largest = max(above.max(), below.max())
    return bool(_SAMPLE_MARGIN * INK_NOISE * noise_of(paper.contrast) >= MAX_THRESHOLD * largest)


def noise_of(contrast: NDArray[np.floating[Any]]) -> float:
    """The deviation of a normal distribution that has this median of magnitudes."""
    return 1.4826 * float(np.median(contrast))


def contrast_to_paper(
    low: NDArray[np.uint8], high: NDArray[np.uint8], surface: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Largest channel difference to the paper's surface."""
    height, width = low.shape[:2]
    down, across = _powers(np.arange(height) / height), _powers(np.arange(width) / width)
    contrast = np.zeros((height, width), np.float32)
    for part in strips(low):
        for channel in range(3):
            fitted = down[part] @ surface[channel].reshape(4, 4) @ across.T
            paper = np.clip(fitted, 0, 255, dtype=np.float32, casting="same_kind")
            _widen(contrast[part], low[part, :, channel], high[part, :, channel], paper)
    return contrast


def strips(pixels: NDArray[np.uint8]) -> list[slice]:
    """Rows in parts small enough for a processor's cache."""
    count = max(1, _STRIP_PIXELS // pixels.shape[1])
    return [slice(top, top + count) for top in range(0, pixels.shape[0], count)]


def _widen(
    contrast: NDArray[np.float32],
    low: NDArray[np.uint8],
    high: NDArray[np.uint8],
    paper: NDArray[np.float32] | np.float32,
) -> None:
    """Raises `contrast` [h, w] to one channel's larger difference to the paper."""
    np.maximum(contrast, high - paper, out=contrast)
    np.maximum(contrast, paper - low, out=contrast)


def _powers(along: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N] positions in [0, 1] → [N, 4]: powers 0 to 3 about the middle."""
    return np.vander(along - 0.5, 4, increasing=True)


def _sampled(length: int) -> NDArray[np.int64]:
    """Places along a side, evenly spread."""
    return np.linspace(0, length - 1, min(length, _PAPER_SAMPLES)).astype(np.int64)


@lru_cache(maxsize=16)
def _terms(height: int, width: int) -> NDArray[np.float64]:
    """[10, S]: the cubic's products of powers at the sampled pixels of a raster."""
    down, across = _powers(_sampled(height) / height), _powers(_sampled(width) / width)
    products = (down[:, None, :, None] * across[None, :, None, :]).reshape(-1, 16)
    return np.ascontiguousarray(products[:, _CUBIC].T)


def _channels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[N, 3] uint8 → [3, N] float32, each channel in one piece."""
    return np.ascontiguousarray(pixels.T, np.float32)
