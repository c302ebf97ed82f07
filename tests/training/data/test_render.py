"""Files become squares with their transparency."""

from pathlib import Path

import numpy as np
from PIL import Image

from training.data.render import fit, on_white, render_file


def test_a_wide_png_touches_both_sides_and_is_centred_on_transparency(tmp_path: Path) -> None:
    Image.fromarray(np.full((10, 40, 3), 7, dtype=np.uint8)).save(tmp_path / "wide.png")
    rgba = render_file(tmp_path / "wide.png", 64)
    assert rgba.shape == (64, 64, 4)
    assert rgba[..., 3].any(axis=0).all()
    rows = np.flatnonzero(rgba[..., 3].any(axis=1))
    assert (rows[0], rows[-1]) == (24, 39)


def test_svg_is_rendered_with_alpha(tmp_path: Path) -> None:
    path = tmp_path / "disc.svg"
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><circle cx="1" cy="1" r="1"/></svg>')
    rgba = render_file(path, 32)
    assert rgba[0, 0, 3] == 0
    assert rgba[16, 16].tolist() == [0, 0, 0, 255]


def test_colours_under_full_transparency_do_not_bleed() -> None:
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[...] = (255, 0, 0, 0)
    rgba[2:6, 2:6] = (0, 0, 255, 255)
    scaled = fit(Image.fromarray(rgba), 24)
    assert scaled[scaled[..., 3] > 8][:, 0].max() < 32


def test_compositing_is_exact_at_both_ends_and_rounds_between() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    assert on_white(rgba).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]
