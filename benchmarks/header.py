"""What every page of results begins with."""

import datetime
import os
import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def header(command: str) -> str:
    """Command, time, commit, cores and load average, as one sentence."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"`{command}`, {now}, commit {_commit()}, {os.cpu_count()} cores, load average {load}."


def _commit() -> str:
    """`BENCH_COMMIT` where the code lies without its repository."""
    if commit := os.environ.get("BENCH_COMMIT"):
        return commit
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=True)
    return git.stdout.strip()
