"""Write `index.md` and `index.png` beside `index.json`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.index.sample import CENTRES, DIRECTIONS, QUERIES, K
from benchmarks.report import plot, shown, table
from benchmarks.report import write as write_page

Results = dict[str, Any]
MAX_RESTART_S, MAX_RATIO, MIN_RECALL = 20, 1.2, 0.98


def write(folder: Path, results: Results) -> None:
    """Write the page, the data and the plot."""
    parts = sorted(results["parts"], key=lambda part: part["size"])
    rows = [{"size": part["size"], **row} for part in parts for row in part["rows"]]
    write_page(folder, "index", _lines(results, parts, rows), results)
    with plot(folder / "index.png") as (left, right):
        for name in dict.fromkeys(row["name"] for row in rows):
            own = [row for row in rows if row["name"] == name]
            sizes = [row["size"] for row in own]
            left.plot(sizes, [row["p50_ms"] for row in own], marker="o", label=name)
            right.plot(sizes, [row["recall"] for row in own], marker="o")
        left.set(xscale="log", yscale="log", xlabel="vectors", ylabel="p50 of one search, ms", title="Latency")
        right.set(xscale="log", xlabel="vectors", ylabel="recall@10", title="Recall")
        right.axhline(MIN_RECALL, color="grey", linestyle=":")
        left.legend(fontsize=8)


def _lines(results: Results, parts: list[Results], rows: list[Results]) -> Iterator[str]:
    ours = [row for row in rows if "store" in row]
    yield from ("# The vector index beside others", "")
    yield (
        f"{results['dimension']}-wide unit vectors around {CENTRES:,} centres, spread over {DIRECTIONS} directions;"
        f" k = {K}, {QUERIES} queries, one at a time on one thread; built with all cores."
    )
    yield ""
    for part in parts:
        yield f"- {part['size']:,}, {part['part']} ({part['took_s']:.0f} s): {part['header']}"
    yield from ("", "![Recall and latency](index.png)", "")
    yield from table([_search(row) for row in rows])
    yield from ("Bytes as each writes its index to disk. Where ours is a graph, FAISS searches the same graph.", "")
    yield from ("What is promised; bold where it was missed.", "", *table([_bars(row) for row in ours]))
    yield (
        "Filters leave a share of the vectors. *Whole*: queries that got min(k, matching) results, from our index and,"
        " at width 64, from plain HNSW. *Store*: the whole search in the store, where SQLite evaluates the filter over"
        " JSON the first time, and caches the matching rows."
    )
    yield from ("", *table([filtered for row in ours for filtered in _filters(row)]))
    yield (
        "The store (SQLite): one item inserted or deleted until its image and row are on disk and the next search finds"
        " it, or not; then a fresh process opens the store and answers its first search, from the snapshot and from SQL"
        " alone (exactly, while the graph is built in the background). Bytes are the growth of that process."
    )
    yield from ("", *table([_store(row) for row in ours]))


def _search(row: Results) -> Results:
    shape = {"vectors": f"{row['size']:,}", "index": row["name"], "width": row.get("width") or "exact"}
    size = {"build s": row["build_s"], "bytes a vector": row["bytes"] / row["size"]}
    return {**shape, **size, "recall@10": row["recall"], "p50 ms": row["p50_ms"], "p99 ms": row["p99_ms"]}


def _bars(row: Results) -> Results:
    whole = min(each["whole"] for each in row["filtered"] + row["store"]["sql_filtered"])
    restart_s, ratio = row["store"]["restart"]["serves_s"], row["latency_ratio"]
    return {
        "vectors": f"{row['size']:,}",
        f"recall ≥ {MIN_RECALL}": _met(row["recall"], row["recall"] >= MIN_RECALL),
        f"latency / plain FAISS's at equal recall ≤ {MAX_RATIO}": _met(ratio, ratio <= MAX_RATIO),
        "filtered queries that got all there is": _met(whole, whole == 1),
        f"restart ≤ {MAX_RESTART_S} s": _met(restart_s, restart_s <= MAX_RESTART_S),
    }


def _met(value: float, is_met: bool) -> str:
    return shown(value) if is_met else f"**{shown(value)}**"


def _filters(row: Results) -> Iterator[Results]:
    for ours, plain, sql in zip(row["filtered"], row["graph_filtered"], row["store"]["sql_filtered"], strict=True):
        stored = {f"store, {turn} ms": sql[f"{turn}_ms"] for turn in ("first", "again")}
        yield {"vectors": f"{row['size']:,}", **ours, "plain HNSW, whole": plain, **stored}


def _store(row: Results) -> Results:
    stored, restart, sql = row["store"], row["store"]["restart"], row["store"]["restart_from_sql"]
    return {
        "vectors": f"{row['size']:,}",
        **{f"{change} ms": stored[f"{change}_ms"] for change in ("insert", "delete")},
        "database bytes a vector": stored["database_bytes"] / row["size"],
        "restart s": f"{restart['serves_s']:.2f} ({restart['kind']})",
        "bytes a vector": restart["bytes"] / row["size"],
        "from SQL s": f"{sql['serves_s']:.2f} ({sql['kind']})",
    }
