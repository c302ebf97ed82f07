"""Measure memory over time under steady load: `python -m benchmarks.soak`. Writes `docs/results/soak.*`."""

import statistics
import sys
import time
from contextlib import closing

from benchmarks.load import Generators
from benchmarks.report import arguments, header, plot, write
from benchmarks.server import VERMOUTH, polled, ready

INTERVAL_S, MAX_SPREAD = 2.0, 0.05


def main() -> None:
    """Measure and write; exit with 1 if memory leaves ± 5 % of its median after warm-up or a request fails."""
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="after warm-up")
    parser.add_argument("--warm-up", type=float, default=1.0, help="minutes")
    parser.add_argument("--clients", type=int, default=12)
    options = parser.parse_args()
    warm_s = 60 * options.warm_up
    with ready(VERMOUTH) as (service, _), closing(Generators(512)) as generators:
        generators.closed_loop(service.port, 1, 0.1)  # returns once the images are there
        started_s = time.perf_counter()
        with polled(lambda: (time.perf_counter() - started_s, service.rss_mib()), INTERVAL_S) as samples:
            run = generators.closed_loop(service.port, options.clients, warm_s + 60 * options.minutes)
    after = [mib for at_s, mib in samples if at_s >= warm_s]
    median = statistics.median(after)
    spread = max(max(after) - median, median - min(after)) / median
    answered, sent = len(run.answered), len(run.responses)
    lines = [
        "# Memory under steady load",
        "",
        f"{header('python -m benchmarks.soak')} {answered} of {sent} distinct 1-megapixel JPEGs answered in "
        f"{samples[-1][0] / 60:.1f} minutes; after the first {options.warm_up:.0f} resident memory stayed within "
        f"**± {spread:.1%}** of its median, {median:.0f} MiB.",
        "",
        "![Resident memory over time](soak.png)",
    ]
    body = {"median_mib": median, "spread": spread, "answered": answered, "sent": sent, "samples": samples}
    write(options.out, "soak", lines, body, indent=None)
    with plot(options.out / "soak.png", columns=1, size=(8, 3)) as (axes,):
        axes.plot([at_s / 60 for at_s, _ in samples], [mib for _, mib in samples])
        axes.axvline(options.warm_up, color="grey", linestyle=":", label="end of warm-up")
        axes.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, 1.1 * max(mib for _, mib in samples)))
        axes.set_title("Under steady load, caches off")
        axes.legend()
    sys.exit(0 if spread <= MAX_SPREAD and answered == sent else 1)


if __name__ == "__main__":
    main()
