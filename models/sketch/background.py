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
_NEAR = 8.0
_NEAR_SHARE = 0.6
_BRINK = 1e-6
_LEAST_SINGULAR = 1e-6
_EVEN_TONE = 4.0
_EVEN_FRAME = 0.75
_VIVID_CHROMA = 90.0
_VIVID_BRIGHTNESS = 190.0
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)

P = TypeVar("P", np.uint8, np.bool_)


def frame_tone(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> tuple[NDArray[np.float32], bool]:
    """The median tone of the raster's outermost pixels, [3], and whether all have it: no camera has seen those."""
    edge = max(1, round(0.01 * max(low.shape[:2])))
    darkest = _channels(frame(low, edge))
    lightest = darkest if low is high else _channels(frame(high, edge))
    tone = _middle(np.add(darkest, lightest, dtype=np.uint16))
    is_even = (darkest >= tone[:, None] - _EVEN_TONE) & (lightest <= tone[:, None] + _EVEN_TONE)
    return tone, bool(is_even.all(axis=0).mean() >= _EVEN_FRAME)


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
            lightest = high[rows, :, channel]
            _widen(contrast[rows], lightest if low is high else low[rows, :, channel], lightest, tone[channel])
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
    """The paper under a raster, from 128 × 128 of its pixels; `low` and `high` are extremes of blocks.

    Six fits, each to the pixels that the one before came nearest to. Of all but the last only those pixels matter,
    and `_quickly_near` finds the same ones in a fraction of the time.
    """
    height, width = low.shape[:2]
    down, across = _sampled(height), _sampled(width)
    darkest = _channels(low.take(down, 0).take(across, 1).reshape(-1, 3))
    lightest = darkest if low is high else _channels(high.take(down, 0).take(across, 1).reshape(-1, 3))
    sums = np.add(darkest, lightest, dtype=np.uint16)
    values: NDArray[np.float32] = sums.astype(np.float32) / np.float32(2)
    terms = _terms(height, width)
    kept = _near(np.abs(values - _middle(sums)[:, None]).max(axis=0))
    quick = _Moments(values.astype(np.float64), _powers(down / height, 7), _powers(across / width, 7))
    for _ in range(5):
        before = kept
        near = _quickly_near(quick, before)
        kept = _near(np.abs(values - _fit(values, terms * before).T @ terms).max(axis=0)) if near is None else near
        if bool((kept == before).all()):
            break
    weights = _fit(values, terms * kept)
    surface = np.zeros((3, 16))
    surface[:, _CUBIC] = weights.T
    tones = np.clip(weights.T @ terms, 0, 255)
    return Paper(surface, tones, np.abs(values - tones).max(axis=0))


def is_all_noise(low: NDArray[np.uint8], high: NDArray[np.uint8], paper: Paper) -> bool:
    """Whether a sample shows already that nothing will stand out from the noise: so end most photographs."""
    noise = _SAMPLE_MARGIN * INK_NOISE * noise_of(paper.contrast)
    lowest, highest = paper.tones.min(axis=1), paper.tones.max(axis=1)
    if noise >= MAX_THRESHOLD * max((255 - lowest).max(), highest.max()):
        return True
    # Along the rows first: over both sides at once NumPy takes ten times as long.
    above = high.max(axis=0).max(axis=0) - lowest
    below = highest - low.min(axis=0).min(axis=0)
    return bool(noise >= MAX_THRESHOLD * max(above.max(), below.max()))


def noise_of(contrast: NDArray[np.floating[Any]]) -> float:
    """The deviation of a normal distribution that has this median of magnitudes."""
    return 1.4826 * float(median(contrast.reshape(-1)))


def median(values: NDArray[Any]) -> np.number[Any]:
    """`np.median` of [N] numbers, none of them NaN, several times as fast."""
    before, half = (len(values) - 1) // 2, len(values) // 2
    # Partition is slow where many are alike, as on paper; but then a sample shows which.
    sample = np.sort(values[:: 1 + len(values) // 512])
    guess: np.number[Any] = sample[len(sample) // 2]
    if np.count_nonzero(values < guess) <= before and np.count_nonzero(values <= guess) > half:
        return guess
    ordered = np.partition(values, half)
    middle: np.number[Any] = ordered[half] if before == half else (ordered[:half].max() + ordered[half]) / 2
    return middle


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
            lightest = high[part, :, channel]
            _widen(contrast[part], lightest if low is high else low[part, :, channel], lightest, paper)
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
    above = high - paper
    if low is high:
        np.abs(above, out=above)
    else:
        np.maximum(contrast, paper - low, out=contrast)
    np.maximum(contrast, above, out=contrast)


def _middle(sums: NDArray[np.uint16]) -> NDArray[np.float32]:
    """[3]: the median of each channel's [N] sums of darkest and lightest, halved."""
    return np.array([median(channel) / 2 for channel in sums], np.float32)


def _fit(values: NDArray[np.float32], kept: NDArray[np.float64]) -> NDArray[np.float64]:
    """[10, 3]: weights of the surfaces nearest to `values` [3, S], of terms that are zero where a pixel is left out."""
    # Ten unknowns: the normal equations are as exact here and ten times as fast as an SVD of all rows.
    return np.asarray(np.linalg.lstsq(kept @ kept.T, kept @ values.T, rcond=1e-12)[0], np.float64)


def _near(distance: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """The pixels to fit next: those near enough to be paper, and six in ten at least."""
    near: NDArray[np.bool_] = distance <= max(_NEAR, float(np.quantile(distance, _NEAR_SHARE)))
    return near


@dataclass(frozen=True, slots=True)
class _Moments:
    """What `_quickly_near` takes sums of: values [3, S], powers 0 to 6 of the rows [h, 7] and the columns [w, 7]."""

    values: NDArray[np.float64]
    down: NDArray[np.float64]
    across: NDArray[np.float64]


def _quickly_near(quick: _Moments, kept: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """`_near` of the distances to the fit of the pixels `kept`; None where rounding might decide.

    Sums over rows and columns of a grid are products of two small matrices. That rounds otherwise than `_fit`, by
    1e-8 at most unless the equations are near singular; so if no distance is within `_BRINK` of a threshold that
    parts the same pixels, `_near` parts them there too.
    """
    down, across = quick.down, quick.across
    planes = np.empty((4, len(down), len(across)))
    planes[3] = kept.reshape(planes.shape[1:])
    np.multiply(quick.values.reshape(-1, *planes.shape[1:]), planes[3], out=planes[:3])
    moments = down.T @ (planes @ across)
    row, column = np.divmod(_CUBIC, 4)
    gram = moments[3, row[:, None] + row, column[:, None] + column]
    weights, _, rank, _ = np.linalg.lstsq(gram, moments[:3, row, column].T, rcond=_LEAST_SINGULAR)
    if rank < len(_CUBIC):
        return None
    surface = np.zeros((3, 4, 4))
    surface[:, row, column] = weights.T
    difference = (down[:, :4] @ surface @ across[:, :4].T).reshape(3, -1)
    difference -= quick.values
    distance = np.abs(difference, out=difference).max(axis=0)
    below = int(_NEAR_SHARE * (len(distance) - 1))
    ordered = np.partition(distance, below)
    threshold = max(_NEAR, (ordered[below] + ordered[below + 1 :].min()) / 2)
    if np.abs(distance - threshold).min() < _BRINK:
        return None
    near: NDArray[np.bool_] = distance <= threshold
    return near


def _powers(along: NDArray[np.float64], count: int = 4) -> NDArray[np.float64]:
    """[N] positions in [0, 1] → [N, count]: powers from 0 about the middle."""
    return np.vander(along - 0.5, count, increasing=True)


def _sampled(length: int) -> NDArray[np.int64]:
    """Places along a side, evenly spread."""
    return np.linspace(0, length - 1, min(length, _PAPER_SAMPLES)).astype(np.int64)


@lru_cache(maxsize=16)
def _terms(height: int, width: int) -> NDArray[np.float64]:
    """[10, S]: the cubic's products of powers at the sampled pixels of a raster."""
    down, across = _powers(_sampled(height) / height), _powers(_sampled(width) / width)
    products = (down[:, None, :, None] * across[None, :, None, :]).reshape(-1, 16)
    return np.ascontiguousarray(products[:, _CUBIC].T)


def _channels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, 3] → [3, N], each channel in one piece."""
    return np.ascontiguousarray(pixels.T)
