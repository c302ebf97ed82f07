"""The background of a raster: fast paths that must not change a bit of it."""

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.sketch import background
from models.sketch.background import (
    contrast_to_surface,
    contrast_to_tone,
    fit_background,
    frame_tone,
    is_all_noise,
    median,
)

Pixels = NDArray[np.uint8]


def _photo() -> Pixels:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC))


def _lit(noise: float) -> Pixels:
    light = np.linspace(0.5, 1, 300)[:, None] * np.linspace(1, 0.8, 200)[None, :]
    pixels = np.full((300, 200, 3), 230.0)
    pixels[100:110, 20:180] = 30
    grain = np.random.default_rng(0).normal(0, noise, pixels.shape)
    return np.clip(pixels * light[:, :, None] + grain, 0, 255).astype(np.uint8)


def _mirrored() -> Pixels:
    quarter = _photo()[:90, :90]
    half = np.concatenate([quarter, quarter[:, ::-1]], axis=1)
    return np.concatenate([half, half[::-1]])


def _fields() -> Pixels:
    pixels = np.zeros((150, 150, 3), np.uint8)
    pixels[:, 60:] = (10, 120, 240)
    pixels[70:, 20:90] += 13
    return pixels


RASTERS: dict[str, Callable[[], Pixels]] = {
    "photo": _photo,
    "lit background": lambda: _lit(0),
    "grainy background": lambda: _lit(6),
    "mirrored, so that distances are equal in pairs": _mirrored,
    "flat fields": _fields,
    "one tone": lambda: np.full((200, 140, 3), 77, np.uint8),
    "noise": lambda: np.random.default_rng(0).integers(0, 256, (130, 130, 3), dtype=np.uint8),
    "one row": lambda: np.arange(600, dtype=np.uint16).astype(np.uint8).reshape(1, 200, 3),
    "one pixel": lambda: np.full((1, 1, 3), 5, np.uint8),
    "three by two": lambda: np.arange(18, dtype=np.uint8).reshape(3, 2, 3),
}


@pytest.mark.parametrize("name", RASTERS)
def test_quick_fits_lead_to_the_same_background_as_full_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = RASTERS[name]()
    lighter = np.maximum(pixels, np.roll(pixels, 1, axis=1))
    for low, high in ((pixels, pixels), (pixels, lighter)):
        quick = fit_background(low, high)
        with monkeypatch.context() as patched:
            patched.setattr(background, "_quick_near", lambda *_: None)
            full = fit_background(low, high)
        assert np.array_equal(quick.surface, full.surface)
        assert np.array_equal(quick.tones, full.tones)
        assert np.array_equal(quick.contrast, full.contrast)


def test_a_photograph_needs_one_full_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Mock(wraps=background._fit)
    monkeypatch.setattr(background, "_fit", fit)
    fit_background(_photo(), _photo())
    assert fit.call_count == 1


@pytest.mark.parametrize("name", RASTERS)
def test_noise_is_judged_by_the_largest_difference(name: str) -> None:
    pixels = RASTERS[name]()
    found = fit_background(pixels, pixels)
    corners = pixels.reshape(-1, 3)
    largest = max(
        (corners.max(axis=0) - found.tones.min(axis=1)).max(), (found.tones.max(axis=1) - corners.min(axis=0)).max()
    )
    noise = 1.4826 * float(np.median(found.contrast))
    assert is_all_noise(pixels, pixels, found) == (
        0.9 * background.FOREGROUND_NOISE * noise >= background.MAX_THRESHOLD * largest
    )


@pytest.mark.parametrize("name", RASTERS)
def test_one_raster_for_both_extremes_is_worth_two_equal_ones(name: str) -> None:
    pixels = RASTERS[name]()
    tone, is_even = frame_tone(pixels, pixels)
    other_tone, other_is_even = frame_tone(pixels, pixels.copy())
    assert np.array_equal(tone, other_tone)
    assert is_even == other_is_even
    surface = fit_background(pixels, pixels).surface
    assert np.array_equal(surface, fit_background(pixels, pixels.copy()).surface)
    assert np.array_equal(contrast_to_tone(pixels, pixels, tone), contrast_to_tone(pixels, pixels.copy(), tone))
    assert np.array_equal(
        contrast_to_surface(pixels, pixels, surface), contrast_to_surface(pixels, pixels.copy(), surface)
    )


@pytest.mark.parametrize("count", [1, 2, 3, 10, 511, 5000, 5001])
@pytest.mark.parametrize("levels", [1, 2, 3, 40, 100_000])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
def test_the_median_is_numpys(count: int, levels: int, dtype: type) -> None:
    values: NDArray[Any] = np.random.default_rng(count).integers(0, levels, count).astype(dtype)
    for ordered in (values, np.sort(values), np.where(values > levels * 0.6, values, values[0])):
        assert float(median(ordered)) == float(np.median(ordered))
