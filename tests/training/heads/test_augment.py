"""Redrawn sketches stay sketches of the same thing."""

import numpy as np
import pytest

from models.transforms import render_strokes
from training.heads.augment import edge_lines, redraw, to_lines, to_strokes

HOUSE: list[list[list[float]]] = [
    [[0, 100, 100, 0, 0], [50, 50, 150, 150, 50]],
    [[0, 50, 100], [50, 0, 50]],
    [[40, 40, 60, 60], [150, 110, 110, 150]],
    [[70, 80], [80, 80]],
]


def test_lines_are_unit_sized_and_strokes_come_back() -> None:
    lines = to_lines(HOUSE)
    every = np.concatenate(lines)
    assert every.min() == 0
    assert every.max() == 1
    assert np.allclose(to_strokes(lines)[1][0], np.array([0, 50, 100]) / 150)


def test_no_strength_changes_nothing() -> None:
    lines = to_lines(HOUSE)
    out = redraw(lines, np.random.default_rng(0), strength=0.0)
    assert all(np.array_equal(a, b) for a, b in zip(lines, out, strict=True))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_seed_gives_one_drawing_and_seeds_differ(strength: float) -> None:
    drawn = [
        render_strokes(to_strokes(redraw(to_lines(HOUSE), np.random.default_rng(seed), strength=strength)))
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_the_longest_stroke_is_never_forgotten_and_points_stay_near_the_drawing() -> None:
    for seed in range(50):
        out = redraw(to_lines(HOUSE), np.random.default_rng(seed), strength=1.0)
        assert 1 <= len(out) <= len(HOUSE)
        every = np.concatenate(out)
        assert np.isfinite(every).all()
        extent = float(np.ptp(out[0], axis=0).max())
        assert extent > 0.3
        assert np.abs(every).max() < 3


def test_single_points_and_two_point_strokes_survive() -> None:
    out = redraw(to_lines([[[5], [5]], [[0, 10], [0, 10]]]), np.random.default_rng(0), strength=1.0)
    assert len(out) == 2
    assert render_strokes(to_strokes(out)).min() < 128


def test_edges_of_a_disc_are_found_and_blank_paper_has_none() -> None:
    y, x = np.mgrid[:128, :128]
    pixels = np.full((128, 128, 3), 255, dtype=np.uint8)
    pixels[np.hypot(x - 64, y - 64) < 40] = (200, 30, 30)
    lines = edge_lines(pixels, 2.0)
    assert lines is not None
    radii = np.hypot(*(np.concatenate(lines) - 0.5).T)
    assert np.allclose(radii, 0.5, atol=0.06)
    assert edge_lines(np.full((128, 128, 3), 255, dtype=np.uint8), 2.0) is None
