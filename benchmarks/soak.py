"""Memory over time under steady load: `python -m benchmarks.soak`. Writes `docs/results/soak.*`."""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.header import header
from benchmarks.serve.contenders import CONTENDERS, ROOT
from benchmarks.serve.images import jpeg
from benchmarks.serve.load import Client, Shot
from benchmarks.serve.measure import running
from benchmarks.serve.processes import rss_bytes

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DEADLINE_S, EVERY_S, MAX_SPREAD = 5.0, 2.0, 0.05


def main() -> None:
    """Measure and write; exit code 1 when memory leaves ± 5 % of its median after warm-up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="after warm-up")
    parser.add_argument("--warm-up", type=float, default=1.0, help="minutes")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--port", type=int, default=8795)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    images = [jpeg(number) for number in range(512)]
    with running(CONTENDERS[0], options.port, "") as process:
        client = Client(options.port, images, patience_s=3 * DEADLINE_S, deadline_s=DEADLINE_S)
        warm_s, span_s = 60 * options.warm_up, 60 * options.minutes
        samples, shots = asyncio.run(_soak(process.pid, client, options.clients, warm_s + span_s))
    after = np.array([mib for at_s, mib in samples if at_s >= warm_s])
    median = float(np.median(after))
    spread = float(max(after.max() - median, median - after.min()) / median)
    answered = sum(shot.status == 200 for shot in shots)
    _write(options.out, samples, warm_s, median, spread, answered, len(shots))
    sys.exit(0 if spread <= MAX_SPREAD and answered == len(shots) else 1)


async def _soak(pid: int, client: Client, clients: int, seconds: float) -> tuple[list[tuple[float, float]], list[Shot]]:
    """(seconds, MiB) samples of resident memory, and every request."""
    await client.until_answered(lambda: None)
    load = asyncio.create_task(client.closed_loop(clients, seconds))
    started_s, samples = time.perf_counter(), []
    while not load.done():
        samples.append((time.perf_counter() - started_s, rss_bytes(pid) / 2**20))
        await asyncio.sleep(EVERY_S)
    client.close()
    return samples, await load


def _write(
    folder: Path,
    samples: list[tuple[float, float]],
    warm_s: float,
    median: float,
    spread: float,
    answered: int,
    sent: int,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(8, 3))
    axes.plot([at_s / 60 for at_s, _ in samples], [mib for _, mib in samples])
    axes.axvline(warm_s / 60, color="grey", linestyle=":", label="end of warm-up")
    axes.set(
        xlabel="minutes",
        ylabel="resident memory, MiB",
        ylim=(0, 1.1 * max(mib for _, mib in samples)),
        title="Under steady load, caches off",
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "soak.png", dpi=110)
    plt.close(figure)
    lines = [
        "# Memory under steady load",
        "",
        f"{header('python -m benchmarks.soak')} {answered} of {sent} distinct 1-megapixel JPEGs answered in "
        f"{samples[-1][0] / 60:.1f} minutes; after the first {warm_s / 60:.0f} resident memory stayed within "
        f"**± {spread:.1%}** of its median, {median:.0f} MiB.",
        "",
        "![Resident memory over time](soak.png)",
    ]
    (folder / "soak.md").write_text("\n".join(lines) + "\n")
    body = {"median_mib": median, "spread": spread, "answered": answered, "sent": sent, "samples": samples}
    (folder / "soak.json").write_text(json.dumps(body) + "\n")


if __name__ == "__main__":
    main()
