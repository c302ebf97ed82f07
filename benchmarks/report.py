"""Parts shared by all result pages: header, percentiles, tables, plots and the files themselves."""

import argparse
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


def header(command: str) -> str:
    """Return the command, time, commit, processor and load average as one sentence."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    # A copy of the code without its repository, as on a rented GPU, passes its commit in the environment.
    commit = os.environ.get("BENCH_COMMIT") or git("rev-parse", "--short", "HEAD")
    return f"`{command}`, {now}, commit {commit}, {os.cpu_count()} cores, {_cpu()}, load average {load}."


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def git(*arguments: str) -> str:
    """Run git in this repository and return its output. Raises CalledProcessError."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that already has `--out`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser


def percentile_ms(seconds: Sequence[float], share: float) -> float:
    """Return a percentile of at least one duration, converted from seconds to milliseconds."""
    return float(np.percentile(seconds, share) * 1e3)


def table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the lines of a Markdown table of all keys of the rows, and an empty line."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([shown(row.get(column)) for column in columns] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def section(values: Mapping[str, Any]) -> list[str]:
    """Return the lines of a section: single values in a sentence, lists of rows as tables."""
    tables = {name: value for name, value in values.items() if isinstance(value, list) and isinstance(value[0], dict)}
    single = [f"{name}: {shown(value)}" for name, value in values.items() if name not in tables]
    lines = [", ".join(single) + ".", ""] if single else []
    return lines + [line for name, rows in tables.items() for line in (f"{name}:", "", *table(rows))]


def shown(value: object) -> str:
    """Return a value as readers want it: three digits of a float, the entries of a mapping, a dash for None."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {shown(one)}" for name, one in value.items()) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "–" if value is None else str(value)


def write(folder: Path, name: str, lines: Iterable[str], body: object, *, indent: int | None = 1) -> None:
    """Write `NAME.md` from `lines` and `NAME.json` from `body`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(body, indent=indent) + "\n", encoding="utf-8")


@contextmanager
def plot(file: Path, *, columns: int = 2, size: tuple[float, float] = (11, 4)) -> Iterator[Sequence[Any]]:
    """Yield the axes of a figure with so many columns; the figure is written to `file` afterwards."""
    from matplotlib.figure import Figure  # here: tests use `header` and don't need matplotlib

    figure = Figure(figsize=size, layout="tight")
    yield figure.subplots(1, columns, squeeze=False)[0]
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
