"""Tables of results: printed, and written as JSON and Markdown with what it takes to repeat them."""

import datetime
import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from models.bundle.build import LoadedBundle
from models.bundle.manifest import Manifest

Row = dict[str, Any]


def report(
    name: str, rows: Sequence[Row], bundles: Sequence[LoadedBundle], out: Path, *, prior: Manifest | None = None
) -> None:
    """Prints a table; writes it as JSON and Markdown with what it takes to repeat it."""
    out.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": f"vermouth eval {name}",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "fingerprints": {loaded.info.name: loaded.info.fingerprint for loaded in bundles},
        **({"unet": prior.components.unet.source.files, "vae": prior.components.vae.source.files} if prior else {}),
    }
    (out / f"{name}.json").write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(key, "")) for key in columns] for row in rows]
    table = Table(*columns)
    for line in cells:
        table.add_row(*line)
    Console().print(table)
    lines = ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *cells)]
    head = f"`{facts['command']}`, {facts['date']}, commit {facts['commit']}, {facts['machine']}"
    (out / f"{name}.md").write_text("\n".join([head, "", *lines]) + "\n")


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _commit() -> str:
    run: Callable[..., Any] = subprocess.run
    found = run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
