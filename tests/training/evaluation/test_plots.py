"""Plots are written for few and for many entries."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.evaluation import plots
from training.evaluation.metrics import calibration


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def test_curves_have_a_panel_a_protocol(tmp_path: Path) -> None:
    curve = np.linspace(1, 0, 101)
    for count in (1, 3):
        panels = {f"p{number}": {"a": curve, "b": curve / 2} for number in range(count)}
        plots.precision_recall_plot(panels, tmp_path / f"{count}.png")
    assert _size(tmp_path / "3.png")[0] == pytest.approx(3 * _size(tmp_path / "1.png")[0], abs=5)


@pytest.mark.parametrize("count", [5, 60, 255])
def test_bars_fit_whatever_the_number_of_words(count: int, tmp_path: Path) -> None:
    values = np.linspace(0, 1, count)
    plots.word_bars([f"word {n}" for n in range(count)], values, title="R@10", file=tmp_path / "bars.png")
    assert _size(tmp_path / "bars.png") == (990, 360)


def test_confusions_reliability_and_ways_are_drawn(tmp_path: Path) -> None:
    plots.confusion_plot(np.eye(3), ["a", "b", "c"], title="t", file=tmp_path / "confusion.png")
    found = calibration(np.array([0.2, 0.9, 0.95]), np.array([False, True, True]))
    plots.reliability_plot({"seen": found, "unseen": found}, tmp_path / "reliability.png")
    plots.ways_bars(["plain", "small"], [0.8, 0.7], least=0.75, title="R@10", file=tmp_path / "ways.png")
    assert len(list(tmp_path.glob("*.png"))) == 3
