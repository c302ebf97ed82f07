"""The background of a drawn raster: its tone or a smooth surface of it, and the contrast of pixels to it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FOREGROUND_NOISE = 4.0  # foreground differs from the background by at least this many times the noise …
MAX_THRESHOLD = 0.8  # … and that must be less than this share of the largest difference in the raster
_SAMPLE_MARGIN = 0.9  # the raster's noise may be lower than its sample's
_SAMPLES = 128  # a side
_STRIP_PIXELS = 1 << 15  # three float32 maps of a strip fit into a processor's cache
_CUBIC = [4 * i + j for i in range(4) for j in range(4 - i)]  # degree ≤ 3, of the 16 products of row and column powers
_NEAR = 8.0  # pixels this near to the fitted surface are background …
_NEAR_SHARE = 0.6  # … and at least this share of all is
_MARGIN = 1e-6  # a hundred times the rounding of `_quick_near`
_LEAST_SINGULAR = 1e-6  # relative; below it the equations are nearly singular
_EVEN_TONE = 4.0  # largest difference to the frame's median tone …
_EVEN_FRAME = 0.75  # … of this share of the frame, if it is even
_VIVID_CHROMA = 90.0
_VIVID_BRIGHTNESS = 190.0  # a vivid but bright tone, like yellow, can be drawn on
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Map = NDArray[np.float32]
P = TypeVar("P", np.uint8, np.bool_)


def frame_tone(low: Pixels, high: Pixels) -> tuple[Map, bool]:
    """Returns the median tone of the outermost pixels, [3], and whether most have it, as in no photograph."""
    edge = max(1, round(0.01 * max(low.shape[:2])))  # thin: a drawing may come close to the border
    darkest = _channels(frame(low, edge))
    lightest = darkest if low is high else _channels(frame(high, edge))
    tone = _middle(np.add(darkest, lightest, dtype=np.uint16))
    is_even = (darkest >= tone[:, None] - _EVEN_TONE) & (lightest <= tone[:, None] + _EVEN_TONE)
    return tone, bool(is_even.all(axis=0).mean() >= _EVEN_FRAME)


def frame(pixels: NDArray[P], edge: int) -> NDArray[P]:
    """Returns the outermost `edge` pixels on every side: [H, W, C] → [N, C]."""
    channels = pixels.shape[2]
    if min(pixels.shape[:2]) <= 2 * edge:
        return pixels.reshape(-1, channels)
    sides = (pixels[:edge], pixels[-edge:], pixels[edge:-edge, :edge], pixels[edge:-edge, -edge:])
    return np.concatenate([side.reshape(-1, channels) for side in sides])


def is_vivid(tone: Map) -> bool:
    """Returns whether a tone is too vivid to draw on, like the background of a sign or a button."""
    return float(np.ptp(tone)) > _VIVID_CHROMA and float(tone @ _LUMINANCE) < _VIVID_BRIGHTNESS


def contrast_to_tone(low: Pixels, high: Pixels, tone: Map) -> Map:
    """Returns the largest channel difference to one tone, [H, W]."""
    contrast = np.zeros(low.shape[:2], np.float32)
    for rows in strips(low):
        for channel in range(3):
            lightest = high[rows, :, channel]
            _widen(contrast[rows], lightest if low is high else low[rows, :, channel], lightest, tone[channel])
    return contrast


@dataclass(frozen=True, slots=True)
class Background:
    """One cubic surface per channel, fitted robustly to the background."""

    surface: NDArray[np.float64]  # [3, 16], a weight for each product of powers
    tones: NDArray[np.float64]  # [3, S], the surface at the sampled pixels
    contrast: NDArray[np.float64]  # [S], of the middle of each sampled block to the surface: a lower bound


def fit_background(low: Pixels, high: Pixels) -> Background:
    """Fits the background of a raster, given as the smallest and largest values of its blocks [H, W, 3] uint8.

    Runs up to six fits, each to the pixels nearest to the one before. Of all but the last only those pixels matter, and
    `_quick_near` finds the same ones in a fraction of the time. `low` is `high` if blocks are single pixels.
    """
    height, width = low.shape[:2]
    down, across = _sampled(height), _sampled(width)
    darkest = _channels(low.take(down, 0).take(across, 1).reshape(-1, 3))
    lightest = darkest if low is high else _channels(high.take(down, 0).take(across, 1).reshape(-1, 3))
    sums = np.add(darkest, lightest, dtype=np.uint16)  # whole numbers: their median is quick, and exact
    values: Map = sums.astype(np.float32) / np.float32(2)
    terms = _terms(height, width)
    near = _near(np.abs(values - _middle(sums)[:, None]).max(axis=0))
    quick = _Moments(values.astype(np.float64), _powers(down / height, 7), _powers(across / width, 7))
    for _ in range(5):
        before, found = near, _quick_near(quick, near)
        near = _near(np.abs(values - _fit(values, terms * before).T @ terms).max(axis=0)) if found is None else found
        if bool((near == before).all()):
            break  # the next fit would be the same
    weights = _fit(values, terms * near)
    surface = np.zeros((3, 16))
    surface[:, _CUBIC] = weights.T
    tones = np.clip(weights.T @ terms, 0, 255)  # a cubic may overshoot
    return Background(surface, tones, np.abs(values - tones).max(axis=0))


def is_all_noise(low: Pixels, high: Pixels, background: Background) -> bool:
    """Returns whether the sample alone shows that nothing stands out from the noise, as in most photographs."""
    noise = _SAMPLE_MARGIN * FOREGROUND_NOISE * noise_of(background.contrast)
    lowest, highest = background.tones.min(axis=1), background.tones.max(axis=1)
    if noise >= MAX_THRESHOLD * max((255 - lowest).max(), highest.max()):
        return True
    # One axis at a time: over both NumPy takes ten times as long.
    above = high.max(axis=0).max(axis=0) - lowest
    below = highest - low.min(axis=0).min(axis=0)
    return bool(noise >= MAX_THRESHOLD * max(above.max(), below.max()))


def noise_of(contrast: NDArray[np.floating[Any]]) -> float:
    """Returns the deviation of a normal distribution with this median of magnitudes."""
    return 1.4826 * float(median(contrast.reshape(-1)))  # 1 / Φ⁻¹(3/4)


def median(values: NDArray[Any]) -> np.number[Any]:
    """Returns `np.median` of [N] numbers without NaN, several times as fast."""
    before, half = (len(values) - 1) // 2, len(values) // 2
    # Partition is slow if many values are equal, as in a background; a sample then guesses the median.
    sample = np.sort(values[:: 1 + len(values) // 512])
    guess: np.number[Any] = sample[len(sample) // 2]
    if np.count_nonzero(values < guess) <= before and np.count_nonzero(values <= guess) > half:
        return guess
    ordered = np.partition(values, half)
    middle: np.number[Any] = ordered[half] if before == half else (ordered[:half].max() + ordered[half]) / 2
    return middle


def contrast_to_surface(low: Pixels, high: Pixels, surface: NDArray[np.float64]) -> Map:
    """Returns the largest channel difference to a fitted surface, [H, W]."""
    height, width = low.shape[:2]
    down, across = _powers(np.arange(height) / height), _powers(np.arange(width) / width)
    contrast = np.zeros((height, width), np.float32)
    for part in strips(low):
        for channel in range(3):
            fitted = down[part] @ surface[channel].reshape(4, 4) @ across.T
            tones = np.clip(fitted, 0, 255, dtype=np.float32, casting="same_kind")
            lightest = high[part, :, channel]
            _widen(contrast[part], lightest if low is high else low[part, :, channel], lightest, tones)
    return contrast


def strips(pixels: Pixels) -> list[slice]:
    """Splits rows into parts that fit a processor's cache."""
    count = max(1, _STRIP_PIXELS // pixels.shape[1])
    return [slice(top, top + count) for top in range(0, pixels.shape[0], count)]


def _widen(contrast: Map, low: Pixels, high: Pixels, background: Map | np.float32) -> None:
    """Raises `contrast` [h, w] to the larger difference of one channel to the background, in place."""
    above = high - background
    if low is high:
        np.abs(above, out=above)
    else:
        np.maximum(contrast, background - low, out=contrast)
    np.maximum(contrast, above, out=contrast)


def _middle(sums: NDArray[np.uint16]) -> Map:
    """Returns half the median of each channel's [N] sums of darkest and lightest, [3]."""
    return np.array([median(channel) / 2 for channel in sums], np.float32)


def _fit(values: Map, terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the least-squares weights [10, 3] of `values` [3, S]; terms are zero where a pixel is left out."""
    # With ten unknowns the normal equations are exact enough, and ten times as fast as an SVD of all rows.
    return np.asarray(np.linalg.lstsq(terms @ terms.T, terms @ values.T, rcond=1e-12)[0], np.float64)


def _near(distance: NDArray[np.floating[Any]]) -> Mask:
    """Returns the pixels to fit next: those near enough to be background, and at least `_NEAR_SHARE` of all."""
    near: Mask = distance <= max(_NEAR, float(np.quantile(distance, _NEAR_SHARE)))
    return near


@dataclass(frozen=True, slots=True)
class _Moments:
    """Input of `_quick_near`: values [3, S], powers 0 to 6 of the rows [h, 7] and of the columns [w, 7]."""

    values: NDArray[np.float64]
    down: NDArray[np.float64]
    across: NDArray[np.float64]


def _quick_near(quick: _Moments, fitted: Mask) -> Mask | None:
    """Returns `_near` of the distances to the fit of the pixels `fitted`; None if rounding might decide.

    Sums over a grid's rows and columns are products of two small matrices. They differ from those of `_fit` by 1e-8 at
    most unless the equations are nearly singular. So if no distance is within `_MARGIN` of the threshold, `_near`
    selects the same pixels.
    """
    down, across = quick.down, quick.across
    planes = np.empty((4, len(down), len(across)))
    planes[3] = fitted.reshape(planes.shape[1:])
    np.multiply(quick.values.reshape(-1, *planes.shape[1:]), planes[3], out=planes[:3])
    moments = down.T @ (planes @ across)
    row, column = np.divmod(_CUBIC, 4)
    gram = moments[3, row[:, None] + row, column[:, None] + column]  # products of powers are powers up to 6
    weights, _, rank, _ = np.linalg.lstsq(gram, moments[:3, row, column].T, rcond=_LEAST_SINGULAR)
    if rank < len(_CUBIC):
        return None  # `_fit` would choose among equal solutions in its own way
    surface = np.zeros((3, 4, 4))
    surface[:, row, column] = weights.T
    difference = (down[:, :4] @ surface @ across[:, :4].T).reshape(3, -1)
    difference -= quick.values
    distance = np.abs(difference, out=difference).max(axis=0)
    below = int(_NEAR_SHARE * (len(distance) - 1))  # the quantile lies between this and the next one
    ordered = np.partition(distance, below)
    threshold = max(_NEAR, (ordered[below] + ordered[below + 1 :].min()) / 2)
    if np.abs(distance - threshold).min() < _MARGIN:
        return None
    near: Mask = distance <= threshold
    return near


def _powers(along: NDArray[np.float64], count: int = 4) -> NDArray[np.float64]:
    """[N] positions in [0, 1] → [N, count]: powers from 0 around the middle."""
    return np.vander(along - 0.5, count, increasing=True)


def _sampled(length: int) -> NDArray[np.int64]:
    """Returns evenly spread indexes along a side."""
    return np.linspace(0, length - 1, min(length, _SAMPLES)).astype(np.int64)


@lru_cache(maxsize=16)
def _terms(height: int, width: int) -> NDArray[np.float64]:
    """Returns the cubic's products of powers at the sampled pixels of a raster, [10, S]."""
    down, across = _powers(_sampled(height) / height), _powers(_sampled(width) / width)
    products = (down[:, None, :, None] * across[None, :, None, :]).reshape(-1, 16)
    return np.ascontiguousarray(products[:, _CUBIC].T)


def _channels(pixels: Pixels) -> Pixels:
    """[N, 3] → [3, N], each channel contiguous."""
    return np.ascontiguousarray(pixels.T)
