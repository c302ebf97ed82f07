"""The results as Markdown, JSON and a picture; written anew after every section."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Found = Mapping[str, Any]


def write(folder: Path, found: Found) -> None:
    """`gpu.json`, `gpu.md` and `gpu.png` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = ["# On a GPU", "", f"{found['header']} {found['machine']}. weights/mini, pictures of 128 px."]
    sections: dict[str, Any] = dict(found["sections"])
    services = {name: sections.pop(name) for name in list(sections) if name.startswith("service ")}
    if services:
        rows = [value if isinstance(value, Mapping) else {"clients": value} for value in services.values()]
        sections["service"] = {"settings": rows}
    for name, value in sections.items():
        lines += ["", f"## {name}", "", *_section(value)]
    if "encoder" in found["sections"] and "rows" in found["sections"]["encoder"]:
        _draw(folder / "gpu.png", found["sections"]["encoder"]["rows"])
        lines += ["", "![Pictures a second and time of a pass](gpu.png)"]
    (folder / "gpu.md").write_text("\n".join(lines) + "\n")


def _section(value: object) -> list[str]:
    if not isinstance(value, Mapping):
        return [str(value)]
    lines: list[str] = []
    plain = {name: one for name, one in value.items() if not _is_table(one)}
    if plain:
        lines += [", ".join(f"{name}: {_shown(one)}" for name, one in plain.items()) + ".", ""]
    for name, one in value.items():
        if _is_table(one):
            lines += [f"{name}:", "", *_table(one), ""]
    return lines[:-1]


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _table(rows: Sequence[Found]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    return lines + ["| " + " | ".join(_shown(row.get(name)) for name in names) + " |" for row in rows]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_shown(one)}" for name, one in value.items())
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "–" if value is None else str(value)


def _draw(file: Path, rows: Sequence[Found]) -> None:
    figure, (rate, time) = plt.subplots(1, 2, figsize=(11, 4))
    for name in dict.fromkeys(row["precision"] for row in rows):
        own = [row for row in rows if row["precision"] == name]
        sizes = [row["batch"] for row in own]
        rate.plot(sizes, [row["per_s"] for row in own], marker="o", label=name)
        (line,) = time.plot(sizes, [row["launched_pass_ms"] for row in own], marker="o", label=f"{name}, launched")
        graphs = [(row["batch"], row["graph_pass_ms"]) for row in own if row.get("graph_pass_ms")]
        if graphs:
            time.plot(*zip(*graphs, strict=True), linestyle=":", marker=".", color=line.get_color())
    rate.set(xscale="log", xlabel="batch", ylabel="pictures/s", title="With the copies there and back")
    time.set(xscale="log", yscale="log", xlabel="batch", ylabel="ms", title="A pass; dotted: as one graph")
    rate.legend()
    time.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
