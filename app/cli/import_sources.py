"""Pictures to import: folders, ZIP archives, CSV tables and webdataset tars, as one stream."""

import csv
import hashlib
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
MAX_FILE_BYTES = 32 << 20
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_ODD = re.compile(r"[^A-Za-z0-9._:-]+")


class UnreadableSource(Exception):
    """The source is none of the kinds there are, or cannot be read; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importable:
    """One picture to import.

    Attributes:
        id: follows from the source alone, so that a second run finds it again.
        name: where it came from, for people.
        data: the file, empty where `fault` says why there is none.
    """

    id: str
    name: str
    data: bytes
    metadata: dict[str, object]
    caption: str | None = None
    fault: str | None = None


def read_source(path: Path) -> Iterator[Importable]:
    """The pictures of a folder, `.zip`, `.csv` or `.tar`, in the order of their names where there is one.

    Raises:
        UnreadableSource: it is none of these, or damaged.
    """
    try:
        if path.is_dir():
            yield from _folder(path)
        elif path.suffix == ".zip":
            yield from _zip(path)
        elif path.suffix == ".csv":
            yield from _csv(path)
        elif path.name.endswith((".tar", ".tar.gz", ".tgz")):
            yield from _webdataset(path)
        else:
            raise UnreadableSource(f"{path} is no folder, .zip, .csv or .tar.")
    except (OSError, zipfile.BadZipFile, tarfile.TarError, UnicodeDecodeError, csv.Error) as err:
        raise UnreadableSource(f"{path} cannot be read: {err}") from err


def item_id(name: str) -> str:
    """An item's id from a file's name: the name where it is one already, else its letters and a digest."""
    if _ID.fullmatch(name):
        return name
    plain = _ODD.sub("_", name).lstrip("._:-")[:96]
    return f"{plain or 'item'}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def _folder(root: Path) -> Iterator[Importable]:
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            name = path.relative_to(root).as_posix()
            yield _from_file(path, name, item_id(name), {"path": name}, None)


def _zip(path: Path) -> Iterator[Importable]:
    with zipfile.ZipFile(path) as archive:
        for entry in sorted(archive.infolist(), key=lambda one: one.filename):
            if entry.is_dir() or PurePosixPath(entry.filename).suffix.lower() not in SUFFIXES:
                continue
            name = entry.filename
            fault, data = _too_large(entry.file_size), b""
            try:
                data = b"" if fault else archive.read(entry)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):
                # RuntimeError: it is encrypted, or packed in a way unknown here.
                fault = "cannot be unpacked"
            yield Importable(id=item_id(name), name=name, data=data, metadata={"path": name}, fault=fault)


def _csv(path: Path) -> Iterator[Importable]:
    """Columns `path` (needed, relative to the table and not above it), `id`, `caption`; all others are metadata."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if "path" not in (rows.fieldnames or ()):
            raise UnreadableSource(f"{path} has no column 'path'.")
        for row in rows:
            name = row.pop("path") or ""
            chosen, caption = row.pop("id", None) or item_id(name), row.pop("caption", None) or None
            metadata: dict[str, object] = {key: value for key, value in row.items() if key and value is not None}
            found = path.parent / name
            if not found.resolve().is_relative_to(path.parent.resolve()):
                # A table from elsewhere must not name, and so send, other files of this machine.
                fault = "lies outside the table's folder"
                yield Importable(id=chosen, name=name, data=b"", metadata=metadata, caption=caption, fault=fault)
            else:
                yield _from_file(found, name, chosen, metadata, caption)


def _webdataset(path: Path) -> Iterator[Importable]:
    """Neighbouring files of one key are one sample: a picture, `.json` metadata, `.txt` caption."""
    with tarfile.open(path) as archive:
        key, parts = "", dict[str, bytes | str]()
        for entry in archive:
            if not entry.isfile():
                continue
            folder, _, last = entry.name.rpartition("/")
            stem, _, suffix = last.partition(".")
            this = f"{folder}/{stem}".lstrip("./")
            if this != key:
                yield from _sample(key, parts)
                key, parts = this, {}
            file = archive.extractfile(entry)
            fault = _too_large(entry.size)
            if file is not None:
                parts[f".{suffix.lower()}"] = fault or file.read()
        yield from _sample(key, parts)


def _sample(key: str, parts: dict[str, bytes | str]) -> Iterator[Importable]:
    picture = next((parts[suffix] for suffix in parts if suffix in SUFFIXES), None)
    if picture is None:
        return
    metadata: dict[str, object] = {"path": key}
    fault = picture if isinstance(picture, str) else None
    caption = parts.get(".txt")
    try:
        told = json.loads(parts.get(".json", b"{}"))
        metadata.update(told if isinstance(told, dict) else {"json": told})
        text = caption.decode().strip() if isinstance(caption, bytes) else None
    except ValueError:
        fault, text = "its .json or .txt cannot be read", None
    data = picture if isinstance(picture, bytes) else b""
    yield Importable(id=item_id(key), name=key, data=data, metadata=metadata, caption=text or None, fault=fault)


def _from_file(path: Path, name: str, chosen: str, metadata: dict[str, object], caption: str | None) -> Importable:
    fault: str | None = None
    data = b""
    try:
        fault = _too_large(path.stat().st_size)
        if fault is None:
            data = path.read_bytes()
    except OSError as err:
        fault = err.strerror or "cannot be read"
    if not _ID.fullmatch(chosen):
        fault = f"the id {chosen[:40]!r} is no item's id"
    return Importable(id=chosen, name=name, data=data, metadata=metadata, caption=caption, fault=fault)


def _too_large(size: int) -> str | None:
    return f"is over {MAX_FILE_BYTES >> 20} MiB" if size > MAX_FILE_BYTES else None
