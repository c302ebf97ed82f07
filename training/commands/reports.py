"""Tables of `vermouth eval`: printed, and written as JSON and Markdown."""

import datetime
import json
import platform
import subprocess
from collections.abc import Sequence
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
    """Print a table; write it as JSON and Markdown with the command, commit, machine and weights behind it."""
    out.mkdir(parents=True, exist_ok=True)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    metadata = {
        "command": f"vermouth eval {name}",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": git.stdout.strip() or "unknown",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "fingerprints": {loaded.info.name: loaded.info.fingerprint for loaded in bundles},
        **({"unet": prior.components.unet.source.files, "vae": prior.components.vae.source.files} if prior else {}),
    }
    (out / f"{name}.json").write_text(json.dumps({**metadata, "rows": rows}, indent=2) + "\n")
    # Rows may differ in their columns: only bundles of several seeds have intervals.
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[_cell(row.get(key, "")) for key in columns] for row in rows]
    table = Table(*columns)
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    markdown = ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *lines)]
    head = f"`{metadata['command']}`, {metadata['date']}, commit {metadata['commit']}, {metadata['machine']}"
    (out / f"{name}.md").write_text("\n".join([head, "", *markdown]) + "\n")


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
