"""The results as Markdown, JSON and a picture."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.serve.measure import FACTORS, Result, median_of

OURS = "vermouth"


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a run found.

    Attributes:
        rounds: a contender's name → its result in each round, None where it did not start.
        limits: a way of the direct loop → pictures a second in each round.
        three: of the shared pass.
        run: date, commit, machine and plan.
    """

    rounds: Mapping[str, Sequence[Result | None]]
    limits: Mapping[str, Sequence[float]]
    three: Mapping[str, float] | None
    run: Mapping[str, object]

    @property
    def medians(self) -> list[Result]:
        """A contender's row each."""
        found = [[each for each in rounds if each is not None] for rounds in self.rounds.values()]
        return [median_of(results) for results in found if results]

    @property
    def limit(self) -> float:
        """The best direct loop's median, pictures a second."""
        return max((statistics.median(found) for found in self.limits.values()), default=0.0)

    def write(self, folder: Path) -> None:
        """`serve.md`, `serve.json` and `serve.png` in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        medians = self.medians
        body = {
            "run": dict(self.run),
            "direct_per_s": {way: list(found) for way, found in self.limits.items()},
            "three_tasks": dict(self.three) if self.three else None,
            "results": [result.as_json() for result in medians],
            "rounds": {
                name: [each.as_json() if each is not None else None for each in rounds]
                for name, rounds in self.rounds.items()
            },
        }
        (folder / "serve.json").write_text(json.dumps(body, indent=1) + "\n")
        (folder / "serve.md").write_text("\n".join(self._lines(medians)) + "\n")
        _draw(folder / "serve.png", medians, self.limit)

    def _lines(self, medians: Sequence[Result]) -> list[str]:
        run = self.run
        loops = ", ".join(f"{way} {statistics.median(found):.1f}/s" for way, found in self.limits.items())
        lines = [
            "# Serving side by side",
            "",
            f"`make bench-serve`, {run['date']}, commit {run['commit']}, {run['machine']}. Every contender serves the "
            f"same encoder (weights/mini, fp32) for distinct 1-megapixel JPEGs over HTTP/1.1, caches off, load "
            f"generator on the same cores; {run['rounds']} rounds in which each has its turn, {run['seconds']} s a "
            f"load, Poisson arrivals at {run['common_per_s']:.0f} a second for everyone and at multiples of its own "
            f"capacity of that round, deadline {run['deadline_s']} s. "
            "Latency counts from when a request was due; goodput is answers inside the deadline. Figures are medians "
            "of the rounds; late and other answers are of all of them together. Load on the machine from elsewhere "
            f"when the run began: {run['load_before']}.",
            "",
            f"Direct loop, no server: {loops}; limit {self.limit:.1f}/s.",
            "",
            *self._bars(),
            *_capacities(medians, self.limit, self.rounds),
            *_loads(medians),
        ]
        if self.three:
            lines += [
                "Three tasks on one picture (retrieval, segmentation by the whole view, few-shot), a client in a row:",
                "",
                "| one pass shared, s | three passes, s | faster | all cached, s |",
                "|---|---|---|---|",
                f"| {self.three['cached_s']:.3f} | {self.three['separate_s']:.3f} | {self.three['speedup']:.2f}× | "
                f"{self.three['repeat_s']:.3f} |",
                "",
            ]
        lines += ["Settings, each with its reason:", ""]
        for result in medians:
            lines += [f"- {result.name}: " + "; ".join(f"{name} ({why})" for name, why in result.settings.items())]
        return [*lines, "", "![Goodput and latency](serve.png)"]

    def _bars(self) -> list[str]:
        """Ours beside the best other in each round that both were in, and the median of those ratios."""
        ratios: dict[str, list[float]] = {}
        for number, mine in enumerate(self.rounds.get(OURS, ())):
            if mine is None:
                continue
            others = [rounds[number] for name, rounds in self.rounds.items() if name != OURS]
            peers = [each for each in others if each is not None]
            for name, ratio in _ratios(mine, peers, max(found[number] for found in self.limits.values())).items():
                ratios.setdefault(name, []).append(ratio)
        if not ratios:
            return []
        rows = (
            f"| {name} | **{statistics.median(found):.2f}** | {', '.join(f'{each:.2f}' for each in found)} |"
            for name, found in ratios.items()
        )
        return ["| | median | rounds |", "|---|---|---|", *rows, ""]


def _ratios(mine: Result, peers: Sequence[Result], limit: float) -> dict[str, float]:
    eights, fives = (FACTORS.index(factor) for factor in (0.8, 5.0))
    found = {
        "capacity / direct loop": mine.capacity_per_s / limit,
        "goodput at 5× / capacity": mine.loads[fives].goodput_per_s / mine.capacity_per_s,
    }
    if peers:
        found["capacity / best peer's"] = mine.capacity_per_s / max(each.capacity_per_s for each in peers)
    theirs = [p99_ms for each in peers if (p99_ms := each.loads[eights].p99_ms) is not None]
    if theirs:
        ours = mine.loads[eights].p99_ms
        found["p99 at 0.8× / best peer's at its own 0.8×"] = (math.inf if ours is None else ours) / min(theirs)
    theirs = [p99_ms for each in peers if (p99_ms := each.common.p99_ms) is not None]
    if theirs:
        ours = mine.common.p99_ms
        found["p99 at one load for all / best peer's"] = (math.inf if ours is None else ours) / min(theirs)
    return found


def _capacities(medians: Sequence[Result], limit: float, rounds: Mapping[str, Sequence[Result | None]]) -> list[str]:
    lines = [
        "| | capacity /s | in each round | of the limit | processes | RSS MiB | start s |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in medians:
        share = f"{result.capacity_per_s / limit:.2f}" if limit else "–"
        rss = max(load.rss_mib for load in result.loads)
        found = ", ".join("–" if each is None else f"{each.capacity_per_s:.1f}" for each in rounds[result.name])
        lines.append(
            f"| {result.name} | {result.capacity_per_s:.1f} | {found} | {share} | {result.processes} | {rss:.0f} | "
            f"{result.start_s:.0f} |"
        )
    return [*lines, ""]


def _loads(medians: Sequence[Result]) -> list[str]:
    lines = [
        "| | load | offered /s | goodput /s | p50 ms | p95 ms | p99 ms | late | other answers | server CPU s | "
        "generator CPU s | health p99 ms | Retry-After within 2× |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in medians:
        for load in (result.common, *result.loads):
            name = "same for all" if load is result.common else f"{load.factor}×"
            others = ", ".join(
                f"{status}: {count}" for status, count in sorted(load.statuses.items()) if status != "200"
            )
            lines.append(
                f"| {result.name} | {name} | {load.offered_per_s:.1f} | {load.goodput_per_s:.1f} | "
                f"{_number(load.p50_ms)} | {_number(load.p95_ms)} | {_number(load.p99_ms)} | {load.late} | "
                f"{others or '–'} | {load.server_cpu_s:.1f} | {load.generator_cpu_s:.1f} | "
                f"{_number(load.health_p99_ms)} | {_share(load.retry_after_within_2)} |"
            )
    return [*lines, "", "Answer 0: the client gave up after three deadlines, or the connection broke.", ""]


def _draw(file: Path, results: Sequence[Result], limit: float) -> None:
    figure, (goodput, latency) = plt.subplots(1, 2, figsize=(11, 4))
    for result in results:
        offered = [load.offered_per_s for load in result.loads]
        goodput.plot(offered, [load.goodput_per_s for load in result.loads], marker="o", label=result.name)
        shown = [(load.factor, load.p99_ms) for load in result.loads if load.p99_ms]
        latency.plot([factor for factor, _ in shown], [value for _, value in shown], marker="o", label=result.name)
    goodput.axhline(limit, color="grey", linestyle=":", label="direct loop")
    goodput.set(xlabel="offered, requests/s", ylabel="goodput, requests/s", title="Answers inside the deadline")
    latency.set(xlabel="load, × own capacity", ylabel="p99 of answers, ms", yscale="log", title="Latency")
    # There no line runs below.
    latency.legend(*goodput.get_legend_handles_labels(), loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
