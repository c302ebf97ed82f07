"""`index.md` and `index.png` from `index.json`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.index.sample import CENTRES, DIRECTIONS, QUERIES, K

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Told = dict[str, Any]
RESTART_S, RATIO, RECALL = 20, 1.2, 0.98


def write(folder: Path, told: Told) -> None:
    """Write both beside the JSON."""
    (folder / "index.md").write_text("\n".join(_lines(told)) + "\n", encoding="utf-8")
    _plot(folder / "index.png", told)


def _rows(told: Told) -> list[Told]:
    parts = sorted(told["parts"], key=lambda part: part["size"])
    return [{"size": part["size"], **row} for part in parts for row in part["rows"]]


def _lines(told: Told) -> Iterator[str]:
    ours = [row for row in _rows(told) if "store" in row]
    yield from ("# The vector index beside others", "")
    yield (
        f"{told['dimension']}-wide unit vectors round {CENTRES:,} centres, spread over {DIRECTIONS} directions;"
        f" k = {K}, {QUERIES} queries, one at a time on one thread; built with all cores."
    )
    yield ""
    for part in sorted(told["parts"], key=lambda part: part["size"]):
        yield f"- {part['size']:,}, {part['part']} ({part['took_s']:.0f} s): {part['header']}"
    yield from ("", "![Recall and latency](index.png)", "")
    yield from _search(told)
    yield from _bars(ours)
    yield from _filters(ours)
    yield from _writes(ours)
    yield from _starts(ours)


def _search(results: Told) -> Iterator[str]:
    yield from ("| vectors | index | width | build s | bytes a vector | recall@10 | p50 ms | p99 ms |", _rule(8))
    for row in _rows(results):
        width = row.get("width") or "exact"
        shape = f"{row['build_s']:.1f} | {row['bytes'] / row['size']:.0f}"
        numbers = f"{row['recall']:.3f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f}"
        yield f"| {row['size']:,} | {row['name']} | {width} | {shape} | {numbers} |"
    yield from (
        "",
        "Bytes as each writes its index to disk. Where ours is a graph, FAISS is asked on the same graph.",
        "",
    )


def _bars(ours: list[Told]) -> Iterator[str]:
    for row in ours:
        least = min(one["whole"] for one in row["filtered"] + row["store"]["sql_filtered"])
        start = row["store"]["restart"]["serves_s"]
        yield (
            f"- {row['size']:,}: recall {row['recall']:.3f} (bar {RECALL}: {_said(row['recall'] >= RECALL)});"
            f" latency {row['latency_ratio']:.2f} × plain {row['against']} at equal recall"
            f" (bar {RATIO}: {_said(row['latency_ratio'] <= RATIO)}); filtered queries that got all there is"
            f" {least:.0%} ({_said(least == 1)}); a restart serves in {start:.1f} s"
            f" (bar {RESTART_S}: {_said(start <= RESTART_S)})."
        )
    yield ""


def _filters(ours: list[Told]) -> Iterator[str]:
    yield (
        "Filters leave a share of the vectors. *Whole*: queries that got min(k, matching) results, ours and, at width"
        " 64, plain HNSW's. *Store*: the whole search in the store, where SQLite works the filter out over JSON the"
        " first time, and keeps the answer for the next."
    )
    head = "| vectors | share | whole | plain HNSW | recall@10 | p50 ms | p99 ms | store, first ms | again ms |"
    yield from ("", head, _rule(9))
    for row in ours:
        for one, plain, sql in zip(row["filtered"], row["graph_filtered"], row["store"]["sql_filtered"], strict=True):
            numbers = f"{one['recall']:.3f} | {one['p50_ms']:.2f} | {one['p99_ms']:.2f}"
            numbers += f" | {sql['first_ms']:.0f} | {sql['again_ms']:.1f}"
            yield f"| {row['size']:,} | {one['share']:.1%} | {one['whole']:.0%} | {plain:.0%} | {numbers} |"
    yield ""


def _writes(ours: list[Told]) -> Iterator[str]:
    yield (
        "One item at a time: in memory alone, and through the store (picture and row on disk, searchable here);"
        " all were found, or gone, in the next search."
    )
    yield from ("", "| vectors | insert, memory ms | delete, memory ms | insert ms | delete ms |", _rule(5))
    for row in ours:
        memory = f"{row['apply_insert_ms']:.3f} | {row['apply_delete_ms']:.3f}"
        yield f"| {row['size']:,} | {memory} | {row['store']['insert_ms']:.1f} | {row['store']['delete_ms']:.1f} |"
    yield ""


def _starts(ours: list[Told]) -> Iterator[str]:
    yield (
        "A fresh process opens the store (SQLite) and answers its first search: from the snapshot, and from SQL alone"
        " (exactly, while the graph is built behind it). Bytes are the process's own growth, a vector."
    )
    yield ""
    yield "| vectors | database bytes a vector | restart s | bytes a vector | from SQL s |"
    yield _rule(5)
    for row in ours:
        size, kept = row["size"], row["store"]
        snapshot, sql = kept["restart"], kept["restart_from_sql"]
        first = f"{snapshot['serves_s']:.2f} ({snapshot['kind']}) | {snapshot['bytes'] / size:.0f}"
        second = f"{sql['serves_s']:.2f} ({sql['kind']})"
        yield f"| {size:,} | {kept['database_bytes'] / size:.0f} | {first} | {second} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _said(holds: bool) -> str:
    return "met" if holds else "**missed**"


def _plot(path: Path, told: Told) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in dict.fromkeys(row["name"] for row in _rows(told)):
        rows = [row for row in _rows(told) if row["name"] == name]
        sizes = [row["size"] for row in rows]
        left.plot(sizes, [row["p50_ms"] for row in rows], marker="o", label=name)
        right.plot(sizes, [row["recall"] for row in rows], marker="o", label=name)
    left.set(xscale="log", yscale="log", xlabel="vectors", ylabel="p50 of one search, ms", title="Latency")
    right.set(xscale="log", xlabel="vectors", ylabel="recall@10", title="Recall")
    right.axhline(RECALL, color="grey", linestyle=":")
    left.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
