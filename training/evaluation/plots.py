"""Plots of what evaluations find: one PNG each, drawn by matplotlib without a display."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import Calibration, Floats

_DPI = 90
_MOST_BARS = 60


def precision_recall_plot(panels: Mapping[str, Mapping[str, Floats]], file: Path) -> None:
    """Precision over recall, a panel a protocol and a line a model.

    Args:
        panels: protocol → model → precision at evenly spaced recalls from 0 to 1.
        file: the PNG.
    """
    with _figure(file, columns=len(panels), width=4.2, height=4.4) as (figure, axes):
        for axis, (protocol, curves) in zip(axes, panels.items(), strict=True):
            for number, (model, curve) in enumerate(curves.items()):
                axis.plot(np.linspace(0, 1, len(curve)), curve, label=model, linewidth=2.5 if not number else 1.2)
            axis.set(title=protocol, xlabel="recall", xlim=(0, 1), ylim=(0, 1))
        axes[0].set_ylabel("interpolated precision, mean over queries")
        lines = list(dict.fromkeys(model for curves in panels.values() for model in curves))
        handles = {line.get_label(): line for axis in axes for line in axis.get_lines()}
        figure.legend([handles[name] for name in lines], lines, loc="outside lower center", ncols=3, fontsize=8)


def word_bars(words: Sequence[str], values: Floats, *, title: str, file: Path) -> None:
    """A bar a word, best first; of many words the best and the worst."""
    order = np.argsort(-values, kind="stable")
    half = _MOST_BARS // 2
    parts = [("", order)] if len(order) <= _MOST_BARS else [("best: ", order[:half]), ("worst: ", order[-half:])]
    with _figure(file, columns=len(parts), width=11 / len(parts), height=4) as (_, axes):
        for axis, (which, rows) in zip(axes, parts, strict=True):
            axis.bar(np.arange(len(rows)), values[rows], color="C0")
            axis.axhline(values.mean(), color="C3", linewidth=1)
            axis.set_xticks(np.arange(len(rows)), [words[row] for row in rows], rotation=90, fontsize=7)
            axis.set(title=f"{which}{title}", ylim=(0, 1), xlim=(-0.7, len(rows) - 0.3))


def confusion_plot(shares: Floats, names: Sequence[str], *, title: str, file: Path) -> None:
    """[N, N] shares of answers, a row the truth; rows need not sum to one."""
    side = max(4.0, 0.14 * len(names) + 2)
    with _figure(file, columns=1, width=side, height=side) as (figure, axes):
        image = axes[0].imshow(shares, cmap="Blues", vmin=0, vmax=max(0.05, float(np.quantile(shares, 0.995))))
        axes[0].set_xticks(np.arange(len(names)), names, rotation=90, fontsize=6)
        axes[0].set_yticks(np.arange(len(names)), names, fontsize=6)
        axes[0].set(title=title, xlabel="answered", ylabel="true")
        figure.colorbar(image, shrink=0.5)


def reliability_plot(found: Mapping[str, Calibration], file: Path) -> None:
    """Accuracy over confidence, with the share of pixels in each bin; a panel a pool."""
    with _figure(file, columns=len(found), width=4, height=3.8) as (_, axes):
        for axis, (name, each) in zip(axes, found.items(), strict=True):
            filled = each.share > 0
            axis.bar(each.confidence[filled], each.share[filled], width=0.04, color="0.85", label="share of pixels")
            axis.plot([0, 1], [0, 1], color="0.6", linewidth=1)
            axis.plot(each.confidence[filled], each.accuracy[filled], "o-", label="accuracy")
            axis.set(title=f"{name}: error {each.error:.3f}", xlabel="probability of the answer", xlim=(0, 1))
            axis.set_ylim(0, 1)
            axis.legend(fontsize=8)


def ways_bars(names: Sequence[str], values: Sequence[float], *, least: float, title: str, file: Path) -> None:
    """A horizontal bar a way of drawing, and the least that is asked for as a line."""
    with _figure(file, columns=1, width=6, height=0.4 * len(names) + 1) as (_, axes):
        axes[0].barh(np.arange(len(names)), values, color=["C0" if value >= least else "C3" for value in values])
        axes[0].axvline(least, color="0.3", linewidth=1)
        axes[0].set_yticks(np.arange(len(names)), names)
        axes[0].set(title=title, xlim=(0, 1))
        axes[0].invert_yaxis()


@contextmanager
def _figure(file: Path, *, columns: int, width: float, height: float) -> Iterator[tuple[Any, NDArray[np.object_]]]:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(width * columns, height), squeeze=False, layout="constrained")
    yield figure, axes[0]
    figure.savefig(file, dpi=_DPI)
    pyplot.close(figure)
