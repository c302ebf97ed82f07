"""Builds the compact data set the embedded default is trained and evaluated on.

On disk: `pictures.npy` [N, 128, 128, 3] uint8 on white, `alpha.npy` [N, 128, 128] uint8, `pictures.jsonl` with one
record a row, `drawings.jsonl.gz`, and `manifest.json`, written last.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import DataError
from training.data.packages import Packages
from training.data.render import SIDE, on_white, render_file
from training.data.splits import Split, Splits, load_drawings, load_splits, named_like, unseen_names

_PHOSPHOR_WEIGHTS = ("thin", "regular", "bold", "fill", "duotone", "light")
_SKIP_GROUPS = ("flags", "component")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file to render."""

    path: Path
    source: str
    kind: str
    hexcode: str | None
    name: str
    split: Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Emoji:
    """One row of openmoji.json."""

    hexcode: str
    annotation: str


def build(packages: Packages, drawings_dir: Path, out: Path, progress: Callable[[int, int], None]) -> dict[str, int]:
    """Renders everything into `out`.

    Args:
        packages: the unpacked sources.
        drawings_dir: folder of the drawings, splits.json and concepts.json.
        out: target folder, made when absent.
        progress: called with (files done, files in all).

    Returns:
        Number of pictures by source.

    Raises:
        DataError: a source is missing.
    """
    splits = load_splits(drawings_dir)
    sources = list(list_sources(packages, splits))
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    counts = _render_all(sources, out, progress)
    _write_drawings(drawings_dir, splits, out)
    manifest = {
        "packages": packages.versions(),
        "counts": counts,
        "sha256": {name: _sha256(out / name) for name in ("pictures.npy", "pictures.jsonl", "drawings.jsonl.gz")},
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return counts


def list_sources(packages: Packages, splits: Splits) -> Iterator[Source]:
    """Every file that enters the data set, with its split."""
    emoji = _read_emoji(packages, splits)
    unseen = unseen_names(splits, [e.annotation for e in emoji if splits.of_class(e.hexcode) == "unseen"])
    yield from _emoji_sources(packages, splits, emoji)
    for weight in _PHOSPHOR_WEIGHTS:
        for path in sorted((packages.npm / "@phosphor-icons/core/assets" / weight).glob("*.svg")):
            name = path.stem.removesuffix(f"-{weight}").replace("-", " ")
            split: Split = "unseen" if named_like(name, unseen) else "none"
            yield Source(path=path, source=f"phosphor-{weight}", kind="icon", hexcode=None, name=name, split=split)
    for path in sorted(packages.clipart.rglob("*.png")):
        name = re.sub(r"[_\-.]+", " ", path.stem).strip()
        split = "unseen" if named_like(f"{path.parent.name} {name}", unseen) else "none"
        yield Source(path=path, source="openclipart", kind="clipart", hexcode=None, name=name, split=split)


def _emoji_sources(packages: Packages, splits: Splits, emoji: list[Emoji]) -> Iterator[Source]:
    vendors = {
        "noto": _vendor_files(packages.npm / "emoji-datasource-google", "google"),
        "twemoji": _vendor_files(packages.npm / "emoji-datasource-twitter", "twitter"),
    }
    for e in emoji:
        split = splits.of_class(e.hexcode)
        slug = _slug(e.annotation)
        files: list[tuple[str, str, Path | None]] = [
            ("openmoji", "picture", packages.npm / f"openmoji/color/svg/{e.hexcode}.svg"),
            ("openmoji", "outline", packages.npm / f"openmoji/black/svg/{e.hexcode}.svg"),
            *((vendor, "picture", found.get(_bare(e.hexcode))) for vendor, found in vendors.items()),
            ("fluent", "picture", packages.npm / f"fluentui-emoji/icons/modern/{slug}.svg"),
            ("fluent-contrast", "outline", packages.npm / f"fluentui-emoji/icons/high-contrast/{slug}.svg"),
            ("fluent-flat", "picture", packages.npm / f"fluentui-emoji/icons/flat/{slug}.svg"),
        ]
        for source, kind, path in files:
            if path is None or not path.is_file():
                continue
            yield Source(
                path=path,
                source=source,
                kind=kind,
                hexcode=e.hexcode,
                name=e.annotation,
                split="evaluation" if source == "fluent-flat" else split,
            )


def _read_emoji(packages: Packages, splits: Splits) -> list[Emoji]:
    rows = json.loads((packages.npm / "openmoji/data/openmoji.json").read_text())
    known = splits.seen | splits.unseen
    found = [Emoji(hexcode=r["hexcode"], annotation=r["annotation"]) for r in rows if r["hexcode"] in known]
    if len(found) != len(known):
        raise DataError(f"openmoji lacks {len(known) - len(found)} of the {len(known)} classes of splits.json")
    return found


def _vendor_files(package: Path, vendor: str) -> dict[str, Path]:
    rows = json.loads((package / "emoji.json").read_text())
    return {
        _bare(row["unified"]): package / f"img/{vendor}/64/{row['image']}" for row in rows if row[f"has_img_{vendor}"]
    }


def _bare(hexcode: str) -> str:
    """A code point sequence without the variation selector, by which vendors differ."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def _slug(annotation: str) -> str:
    plain = annotation.lower().replace("’", "").replace("“", "").replace("”", "").replace("&", "and")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _render_all(sources: list[Source], out: Path, progress: Callable[[int, int], None]) -> dict[str, int]:
    pixels = np.lib.format.open_memmap(
        out / "pictures.part.npy", mode="w+", dtype=np.uint8, shape=(len(sources), SIDE, SIDE, 3)
    )
    alphas = np.zeros((len(sources), SIDE, SIDE), dtype=np.uint8)
    first_rows: dict[bytes, int] = {}
    counts: dict[str, int] = {}
    records: list[dict[str, object]] = []
    with ThreadPoolExecutor(2) as pool:
        for done, (source, rgba) in enumerate(zip(sources, pool.map(_try_render, sources), strict=True), 1):
            progress(done, len(sources))
            if rgba is None:
                continue
            picture = on_white(rgba)
            digest = hashlib.sha256(picture.tobytes()).digest()
            if source.hexcode is None and (digest in first_rows or float(picture.std()) < 2):
                if source.split == "unseen" and records[first_rows.get(digest, -1)]["split"] == "none":
                    records[first_rows[digest]]["split"] = "unseen"  # a copy's name counts too
                continue  # clip art and icons come in copies; emoji are one file a class already
            first_rows.setdefault(digest, len(records))
            pixels[len(records)] = picture
            alphas[len(records)] = rgba[..., 3]
            fields = asdict(source)
            del fields["path"]
            records.append({"row": len(records), **fields})
            counts[source.source] = counts.get(source.source, 0) + 1
    np.save(out / "pictures.npy", pixels[: len(records)])
    (out / "pictures.part.npy").unlink()
    np.save(out / "alpha.npy", alphas[: len(records)])
    (out / "pictures.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return counts


def _try_render(source: Source) -> NDArray[np.uint8] | None:
    try:
        return render_file(source.path)
    except (OSError, ValueError, Image.DecompressionBombError):
        if source.hexcode is not None:
            raise
        return None  # a few clip-art files are damaged in the package itself, or hold hundreds of megapixels


def _write_drawings(drawings_dir: Path, splits: Splits, out: Path) -> None:
    with gzip.open(out / "drawings.jsonl.gz", "wt") as lines:
        for drawing in load_drawings(drawings_dir):
            record = {
                "word": drawing.word,
                "key_id": drawing.key_id,
                "hexcodes": splits.concepts.get(drawing.word, ()),
                "split": splits.of_word(drawing.word),
                "validation": drawing.key_id in splits.validation_drawings,
                "drawing": drawing.strokes,
            }
            lines.write(json.dumps(record) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
