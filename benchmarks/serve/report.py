"""Write `serve.md`, `serve.json` and `serve.png`."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import plot, shown, table, write
from benchmarks.serve.measure import FACTORS, Load, Plan, median_of
from benchmarks.server import VERMOUTH


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a run measured."""

    header: str
    plan: Plan
    rounds: Sequence[Mapping[str, Mapping[str, Load]]]  # server name → loads by name; a server may have failed to start
    limits: Mapping[str, Sequence[float]]  # way of the direct loop → images a second in each round
    three: Mapping[str, float]  # medians of the shared pass

    def write(self, folder: Path) -> None:
        """Write the page, the data and the plot."""
        grouped: dict[tuple[str, str], list[Load]] = {}
        for load in (load for servers in self.rounds for loads in servers.values() for load in loads.values()):
            grouped.setdefault((load.server, load.load), []).append(load)
        medians = {key: median_of(loads) for key, loads in sorted(grouped.items(), key=lambda item: item[0][0])}
        body = {
            "header": self.header,
            "plan": asdict(self.plan),
            "direct_per_s": self.limits,
            "three_tasks": self.three,
            "medians": [*medians.values()],
            "rounds": [asdict(load) for loads in grouped.values() for load in loads],
        }
        write(folder, "serve", self._lines([*medians.values()]), body)
        self._draw(folder / "serve.png", medians)

    @property
    def _limit(self) -> float:
        return max(statistics.median(found) for found in self.limits.values())

    def _lines(self, medians: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        yield from ("# Serving side by side", "")
        yield (
            f"{self.header} Every server has the same encoder (weights/mini, fp32) for distinct 1-megapixel JPEGs over "
            f"HTTP/1.1, caches off, load generator on the same cores; {len(self.rounds)} rounds in which each has its "
            f"turn, {self.plan.seconds} s a load: a closed loop (`full`), Poisson arrivals at {self.plan.common_per_s} "
            "a second (`common`) and at multiples of the server's own capacity of that round. Latency counts from when "
            f"a request was due; goodput is answers within {self.plan.deadline_s} s. Figures are medians of rounds; "
            "late answers and statuses are sums. Status 0: the client gave up after three deadlines, or the connection "
            "broke. The load average is that of the machine when the run began. Settings and their reasons: "
            "`benchmarks/server.py` and `benchmarks/serve/*_server.py`."
        )
        loops = ", ".join(f"{way} {statistics.median(found):.1f}/s" for way, found in self.limits.items())
        yield from ("", f"Direct loop, no server: {loops}; limit {self._limit:.1f}/s.", "")
        ratios = [self._ratios(number) for number in range(len(self.rounds))]
        for name in dict.fromkeys(name for each in ratios for name in each):
            found = [each[name] for each in ratios if name in each]
            yield f"- {name}: **{statistics.median(found):.2f}** ({', '.join(map(shown, found))})"
        yield from ("", *table(medians))
        yield "Three tasks on one image (retrieval, segmentation by the whole view, few-shot), one request at a time:"
        yield from ("", *table([self.three]), "![Goodput and latency](serve.png)")

    def _ratios(self, number: int) -> dict[str, float]:
        """Return this service's figures of one round, by the best peer's of the same round."""
        ours = self.rounds[number].get(VERMOUTH.name)
        if ours is None:
            return {}
        peers = [loads for name, loads in self.rounds[number].items() if name != VERMOUTH.name]
        capacity = ours["full"].offered_per_s
        ratios = {
            "capacity / direct loop": capacity / max(rates[number] for rates in self.limits.values()),
            "goodput at 5× / capacity": ours["5.0×"].goodput_per_s / capacity,
        }
        if peers:
            ratios["capacity / best peer's"] = capacity / max(loads["full"].offered_per_s for loads in peers)
        compared = {
            "p99 at 0.8× / best peer's at its own 0.8×": "0.8×",
            "p99 at one load for all / best peer's": "common",
        }
        for name, load in compared.items():
            answered = [p99_ms for loads in peers if (p99_ms := loads[load].p99_ms) is not None]
            if answered:
                ratios[name] = (ours[load].p99_ms or math.inf) / min(answered)
        return ratios

    def _draw(self, file: Path, medians: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
        with plot(file) as (goodput, latency):
            for name in dict.fromkeys(server for server, _ in medians):
                loads = [medians[name, f"{factor}×"] for factor in FACTORS]
                offered = [load["offered_per_s"] for load in loads]
                goodput.plot(offered, [load["goodput_per_s"] for load in loads], marker="o", label=name)
                latency.plot(FACTORS, [load["p99_ms"] or math.nan for load in loads], marker="o")
            goodput.axhline(self._limit, color="grey", linestyle=":", label="direct loop")
            goodput.set(xlabel="offered, requests/s", ylabel="goodput, requests/s", title="Answers inside the deadline")
            latency.set(xlabel="load, × own capacity", ylabel="p99 of answers, ms", yscale="log", title="Latency")
            latency.legend(*goodput.get_legend_handles_labels(), loc="lower right")  # no line runs below that corner
