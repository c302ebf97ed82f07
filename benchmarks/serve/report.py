"""The results as Markdown, JSON and a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.serve.measure import Result


def write(
    folder: Path,
    results: Sequence[Result],
    *,
    limits: Mapping[str, float],
    three: Mapping[str, float] | None,
    run: Mapping[str, object],
) -> None:
    """`serve.md`, `serve.json` and `serve.png` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "run": dict(run),
        "direct_per_s": dict(limits),
        "three_tasks": dict(three) if three else None,
        "results": [result.as_json() for result in results],
    }
    (folder / "serve.json").write_text(json.dumps(body, indent=1) + "\n")
    (folder / "serve.md").write_text("\n".join(_lines(results, limits, three, run)) + "\n")
    _draw(folder / "serve.png", results, max(limits.values(), default=0.0))


def _lines(
    results: Sequence[Result], limits: Mapping[str, float], three: Mapping[str, float] | None, run: Mapping[str, object]
) -> list[str]:
    limit = max(limits.values(), default=0.0)
    lines = [
        "# Serving side by side",
        "",
        f"`make bench-serve`, {run['date']}, commit {run['commit']}, {run['machine']}. Every contender serves the same "
        f"encoder (weights/mini, fp32) for distinct 1-megapixel JPEGs over HTTP/1.1, caches off, load generator on the "
        f"same cores; {run['seconds']} s a load, Poisson arrivals at multiples of each contender's own capacity, "
        f"deadline {run['deadline_s']} s. Latency counts from when a request was due; goodput is answers inside the "
        "deadline. Load on the machine from elsewhere when the run began: "
        f"{run['load_before']}.",
        "",
        "Direct loop, no server: "
        + ", ".join(f"{name} {value:.1f}/s" for name, value in limits.items())
        + f"; limit {limit:.1f}/s.",
        "",
        "| | capacity /s | of the limit | processes | RSS MiB | start s |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        share = f"{result.capacity_per_s / limit:.2f}" if limit else "–"
        rss = max(load.rss_mib for load in result.loads)
        lines.append(
            f"| {result.name} | {result.capacity_per_s:.1f} | {share} | {result.processes} | {rss:.0f} | "
            f"{result.start_s:.0f} |"
        )
    lines += [
        "",
        "| | load | offered /s | goodput /s | p50 ms | p95 ms | p99 ms | late | other answers | server CPU s | "
        "generator CPU s | health p99 ms | Retry-After within 2× |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for load in result.loads:
            others = ", ".join(
                f"{status}: {count}" for status, count in sorted(load.statuses.items()) if status != "200"
            )
            lines.append(
                f"| {result.name} | {load.factor}× | {load.offered_per_s:.1f} | {load.goodput_per_s:.1f} | "
                f"{_number(load.p50_ms)} | {_number(load.p95_ms)} | {_number(load.p99_ms)} | {load.late} | "
                f"{others or '–'} | {load.server_cpu_s:.1f} | {load.generator_cpu_s:.1f} | "
                f"{_number(load.health_p99_ms)} | {_share(load.retry_after_within_2)} |"
            )
    lines += ["", "Answer 0: the client gave up after three deadlines, or the connection broke.", ""]
    if three:
        lines += [
            "Three tasks on one picture (retrieval, segmentation by the whole view, few-shot), a client in a row:",
            "",
            "| one pass shared, s | three passes, s | faster | all cached, s |",
            "|---|---|---|---|",
            f"| {three['cached_s']:.3f} | {three['separate_s']:.3f} | {three['speedup']:.2f}× | "
            f"{three['repeat_s']:.3f} |",
            "",
        ]
    lines += ["Settings, each with its reason:", ""]
    for result in results:
        lines += [f"- {result.name}: " + "; ".join(f"{name} ({why})" for name, why in result.settings.items())]
    return [*lines, "", "![Goodput and latency](serve.png)"]


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
    goodput.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
