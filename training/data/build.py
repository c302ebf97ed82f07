"""Builds the data set: fetches packages by name with their own clients, lists their files and renders them."""

import dataclasses
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from models.errors import DataError
from training.data.dataset import (
    ALPHA,
    DRAWINGS,
    MANIFEST,
    PIXELS,
    RECORDS,
    SIDE,
    ImageRecord,
    Split,
    Splits,
    load_drawings,
    load_splits,
    named_like,
    unseen_names,
)

NPM_PACKAGES = (
    "openmoji",
    "emoji-datasource-google",
    "emoji-datasource-twitter",
    "fluentui-emoji",
    "@phosphor-icons/core",
)
DEBIAN_PACKAGE = "openclipart-png"
_INSTALLED_CLIPART = Path("/usr/share/openclipart/png")
_PHOSPHOR_WEIGHTS = ("thin", "regular", "bold", "fill", "duotone", "light")
_LEAST_DEVIATION = 2.0  # of the pixels, below which clip art is blank


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """Unpacked packages."""

    npm: Path  # a `node_modules` folder with `NPM_PACKAGES`
    clipart: Path  # the `png` folder of openclipart

    def versions(self) -> dict[str, str]:
        """Version of every npm package, from its package.json."""
        return {
            name: str(json.loads((self.npm / name / "package.json").read_text())["version"]) for name in NPM_PACKAGES
        }


Source = tuple[Path, ImageRecord]  # a file to render, and its record, whose row is known once it is rendered


def build(packages: Packages, drawings_dir: Path, out: Path, progress: Callable[[int, int], None]) -> dict[str, int]:
    """Render everything into `out`.

    Args:
        packages: the unpacked sources.
        drawings_dir: folder of the drawings, splits.json and concepts.json.
        out: target folder, created if absent.
        progress: called with (files done, files in all).

    Returns:
        Number of images by source.

    Raises:
        DataError: a source is missing.
    """
    splits = load_splits(drawings_dir)
    sources = list(list_sources(packages, splits))
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    records = _render_all(sources, out, progress)
    with gzip.open(out / DRAWINGS, "wt") as lines:
        for drawing in load_drawings(drawings_dir, splits):
            fields = dataclasses.asdict(drawing)
            fields["drawing"] = fields.pop("strokes")
            lines.write(json.dumps(fields) + "\n")
    counts = dict(Counter(record.source for record in records))
    manifest = {
        "packages": packages.versions(),
        "counts": counts,
        "sha256": {name: _sha256(out / name) for name in (PIXELS, RECORDS, DRAWINGS)},
    }
    # Written last: a folder without it is unfinished.
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return counts


def _render_all(sources: list[Source], out: Path, progress: Callable[[int, int], None]) -> list[ImageRecord]:
    part = out / "pictures.part.npy"
    pixels = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(sources), SIDE, SIDE, 3))
    alphas = np.zeros((len(sources), SIDE, SIDE), dtype=np.uint8)
    first_rows: dict[bytes, int] = {}
    records: list[ImageRecord] = []
    with ThreadPoolExecutor(2) as pool:
        for done, ((_, source), rgba) in enumerate(zip(sources, pool.map(_try_render, sources), strict=True), 1):
            progress(done, len(sources))
            if rgba is None:
                continue
            image = on_white(rgba)
            digest = hashlib.sha256(image.tobytes()).digest()
            # Clip art and icons come in copies; emoji are one file a class already.
            if source.hexcode is None and (digest in first_rows or float(image.std()) < _LEAST_DEVIATION):
                first = first_rows.get(digest, -1)
                if source.split == "unseen" and records[first].split == "none":
                    records[first] = dataclasses.replace(records[first], split="unseen")  # a copy's name counts too
                continue
            row = len(records)
            first_rows.setdefault(digest, row)
            pixels[row], alphas[row] = image, rgba[..., 3]
            records.append(dataclasses.replace(source, row=row))
    np.save(out / PIXELS, pixels[: len(records)])
    part.unlink()
    np.save(out / ALPHA, alphas[: len(records)])
    (out / RECORDS).write_text("".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in records))
    return records


def _try_render(source: Source) -> NDArray[np.uint8] | None:
    path, record = source
    try:
        return render_file(path)
    except (OSError, ValueError, Image.DecompressionBombError):
        # A few clip-art files are damaged in the package itself, or hold hundreds of megapixels.
        if record.hexcode is not None:
            raise
        return None


def fetch_packages(cache: Path, *, npm: Path | None = None) -> Packages:
    """Make all packages available; what is missing is fetched.

    Args:
        cache: folder for what has to be fetched.
        npm: an existing `node_modules` folder to use instead.

    Raises:
        DataError: `npm` is no folder, a client is not installed or its fetch failed.
    """
    if npm is not None and not npm.is_dir():
        raise DataError(f"{npm} is no folder: name an existing node_modules")
    return Packages(npm=npm or _fetch_npm(cache), clipart=_find_clipart(cache))


def _fetch_npm(cache: Path) -> Path:
    modules = cache / "npm" / "node_modules"
    missing = [name for name in NPM_PACKAGES if not (modules / name / "package.json").is_file()]
    if missing:
        modules.parent.mkdir(parents=True, exist_ok=True)
        (modules.parent / "package.json").write_text('{"private": true}\n')
        # Scripts of a package are never run: only its files are read.
        _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *missing], modules.parent)
    return modules


def _find_clipart(cache: Path) -> Path:
    if _INSTALLED_CLIPART.is_dir():
        return _INSTALLED_CLIPART
    root = cache / "debian"
    folder = root / "usr" / "share" / "openclipart" / "png"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        # Downloaded and unpacked rather than installed, which would need root.
        _run(["apt-get", "download", DEBIAN_PACKAGE], root)
        for archive in sorted(root.glob(f"{DEBIAN_PACKAGE}_*.deb")):
            _run(["dpkg", "-x", archive.name, "."], root)
    return folder


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise DataError(f"'{command[0]}' is needed to fetch the training packages and is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataError(f"'{' '.join(command)}' failed with exit code {done.returncode}: {done.stderr.strip()[-400:]}")


def list_sources(packages: Packages, splits: Splits) -> Iterator[Source]:
    """Yield every file that enters the data set, with its split.

    Raises:
        DataError: OpenMoji lacks a class of the splits.
    """
    rows = json.loads((packages.npm / "openmoji/data/openmoji.json").read_text())
    known = splits.seen | splits.unseen
    names = {row["hexcode"]: row["annotation"] for row in rows if row["hexcode"] in known}
    if len(names) != len(known):
        raise DataError(f"openmoji lacks {len(known) - len(names)} of the {len(known)} classes of splits.json")
    unseen = unseen_names(splits, [name for code, name in names.items() if splits.of_class(code) == "unseen"])
    yield from _emoji_sources(packages.npm, splits, names)
    for weight in _PHOSPHOR_WEIGHTS:
        for path in sorted((packages.npm / "@phosphor-icons/core/assets" / weight).glob("*.svg")):
            name = path.stem.removesuffix(f"-{weight}").replace("-", " ")
            split: Split = "unseen" if named_like(name, unseen) else "none"
            yield path, _record(f"phosphor-{weight}", "icon", None, name, split)
    for path in sorted(packages.clipart.rglob("*.png")):
        name = re.sub(r"[_\-.]+", " ", path.stem).strip()
        # The folder may hold the only telling word: `birds/owl/01.png`.
        split = "unseen" if named_like(f"{path.parent.name} {name}", unseen) else "none"
        yield path, _record("openclipart", "clipart", None, name, split)


def _emoji_sources(npm: Path, splits: Splits, names: dict[str, str]) -> Iterator[Source]:
    vendors = {
        "noto": _vendor_files(npm / "emoji-datasource-google", "google"),
        "twemoji": _vendor_files(npm / "emoji-datasource-twitter", "twitter"),
    }
    for hexcode, name in names.items():
        fluent = npm / "fluentui-emoji/icons"
        files: list[tuple[str, str, Path | None]] = [
            ("openmoji", "picture", npm / f"openmoji/color/svg/{hexcode}.svg"),
            ("openmoji", "outline", npm / f"openmoji/black/svg/{hexcode}.svg"),
            *((vendor, "picture", found.get(_bare(hexcode))) for vendor, found in vendors.items()),
            ("fluent", "picture", fluent / "modern" / f"{_slug(name)}.svg"),
            ("fluent-contrast", "outline", fluent / "high-contrast" / f"{_slug(name)}.svg"),
            ("fluent-flat", "picture", fluent / "flat" / f"{_slug(name)}.svg"),
        ]
        for source, kind, path in files:
            if path is not None and path.is_file():
                # Fluent's flat style belongs to the evaluation alone, whatever the class.
                split = "evaluation" if source == "fluent-flat" else splits.of_class(hexcode)
                yield path, _record(source, kind, hexcode, name, split)


def _record(source: str, kind: str, hexcode: str | None, name: str, split: Split) -> ImageRecord:
    return ImageRecord(row=-1, source=source, kind=kind, hexcode=hexcode, name=name, split=split)


def _vendor_files(package: Path, vendor: str) -> dict[str, Path]:
    rows = json.loads((package / "emoji.json").read_text())
    return {
        _bare(row["unified"]): package / f"img/{vendor}/64/{row['image']}" for row in rows if row[f"has_img_{vendor}"]
    }


def _bare(hexcode: str) -> str:
    """A code point sequence without the variation selector, by which vendors differ."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def _slug(annotation: str) -> str:
    """The file name that Fluent gives an emoji."""
    plain = annotation.lower().replace("’", "").replace("“", "").replace("”", "").replace("&", "and")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def render_file(path: Path, side: int = SIDE) -> NDArray[np.uint8]:
    """A PNG or SVG file, fitted into a square and centred: [side, side, 4] uint8 RGBA, straight alpha."""
    if path.suffix == ".svg":
        return fit(Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=side)))), side)
    with Image.open(path) as image:
        return fit(image, side)


def fit(image: Image.Image, side: int = SIDE) -> NDArray[np.uint8]:
    """`image` scaled to touch the square's border and centred on transparency: [side, side, 4] uint8."""
    rgba = image.convert("RGBA")
    scale = side / max(rgba.size)
    width, height = (max(1, round(length * scale)) for length in rgba.size)
    # Premultiplied resampling: colours under full transparency must not bleed into the edges.
    resized = rgba.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    canvas.paste(resized, ((side - width) // 2, (side - height) // 2))
    return np.asarray(canvas, dtype=np.uint8)


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 4] uint8 RGBA composited on white: [H, W, 3] uint8."""
    alpha = rgba[..., 3:].astype(np.uint16)
    colour = rgba[..., :3].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
