"""Loss curves: one CSV a run, and the plot of it."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def append_row(path: Path, row: Mapping[str, float]) -> None:
    """Adds one line to a CSV, with a header when the file is new."""
    is_new = not path.is_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if is_new:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" for key, value in row.items()})


def plot_curves(path: Path, image: Path) -> None:
    """Draws every column of a CSV but `step` and `seconds` over the steps, raw and smoothed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return
    steps = np.array([float(row["step"]) for row in rows])
    names = [name for name in rows[0] if name not in ("step", "seconds")]
    figure, axes = pyplot.subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        values = np.array([float(row[name]) for row in rows])
        window = max(1, len(values) // 30)
        smooth = np.convolve(np.pad(values, (window - 1, 0), mode="edge"), np.ones(window) / window, mode="valid")
        axis.plot(steps, values, color="0.8")
        axis.plot(steps, smooth, color="C0")
        axis.set(title=name, xlabel="step", yscale="log" if values.min() > 0 else "linear")
    figure.savefig(image, dpi=90)
    pyplot.close(figure)
