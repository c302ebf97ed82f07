"""Bulk import: images of folders, ZIP archives, CSV tables and webdataset tars, added in parallel batches."""

import csv
import hashlib
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import httpx
from rich.progress import Progress

from app.cli.main import CommandError
from app.cli.service_calls import ServiceRefused, existing_ids, send

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
MAX_FILE_BYTES = 32 << 20
MAX_BATCH_BYTES = 16 << 20  # large files make small batches
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")  # as the API's
_ODD = re.compile(r"[^A-Za-z0-9._:-]+")
_REFUSES_WHOLE_BATCH = frozenset({400, 413, 415, 422})  # because of one image, which halving finds


class UnreadableSource(CommandError):
    """The source cannot be read or is of an unknown kind; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importable:
    """One image to import."""

    id: str  # derived from the source alone, so that a second run finds it again
    name: str  # where the image comes from, for messages
    data: bytes  # the file; empty if there is a fault
    metadata: dict[str, object]
    caption: str | None = None
    fault: str | None = None  # why the image cannot be imported


@dataclass(slots=True)
class Imported:
    """Result of an import; `rejected` has one line per file."""

    added: int = 0
    skipped: int = 0
    rejected: list[str] = field(default_factory=list)


def import_images(
    client: httpx.Client, gallery: str, images: Iterable[Importable], *, batch: int, workers: int, bar: Progress
) -> Imported:
    """Adds images whose ids the gallery lacks, `batch` per request; creates the gallery if needed.

    Raises:
        ServiceRefused: a request failed for good; a second run continues from there.
        UnreadableSource: the source is damaged.
    """
    known = existing_ids(client, gallery)
    done = Imported()
    task = bar.add_task(f"importing into {gallery}", total=None)
    running: dict[Future[list[str]], int] = {}

    def collect() -> None:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            rejected, size = future.result(), running.pop(future)
            done.rejected += rejected
            done.added += size - len(rejected)
            bar.update(task, completed=done.added + len(done.rejected))

    with ThreadPoolExecutor(workers, thread_name_prefix="import") as pool:
        for part in _batches(_new(images, known, done), batch):
            if len(running) >= 2 * workers:  # bounds the batches in memory, and keeps every worker busy
                collect()
            running[pool.submit(_add_or_halve, client, gallery, part)] = len(part)
        while running:
            collect()
    return done


def add_items(client: httpx.Client, gallery: str, part: Sequence[Importable], *, wait: bool = True) -> list[str]:
    """Adds images in one request and returns a line for each rejected one; `wait` until searches find the others."""
    files = [("image", (one.id, one.data)) for one in part]
    items = [{"id": one.id, "metadata": one.metadata, "caption": one.caption} for one in part]
    url, params = f"/galleries/{gallery}/items", {"wait": str(wait).lower()}
    answer = send(client, "POST", url, params=params, files=files, data={"items": json.dumps(items)})
    return [
        f"{one.name}: {result['problem']['detail']}"
        for one, result in zip(part, answer.json()["results"], strict=True)
        if result["status"] == "rejected"
    ]


def read_source(path: Path) -> Iterator[Importable]:
    """Yields the images of a folder, `.zip`, `.csv` or `.tar`; those of a folder or archive in the order of names.

    Raises:
        UnreadableSource: the source is of another kind, or damaged.
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
    """Returns an item id for a file name: the name if it is a valid id, else its valid characters and a digest."""
    if _ID.fullmatch(name):
        return name
    plain = _ODD.sub("_", name).lstrip("._:-")[:96]  # leaves room for the digest
    return f"{plain or 'item'}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def _new(images: Iterable[Importable], known: set[str], done: Imported) -> Iterator[Importable]:
    seen: set[str] = set()
    for one in images:
        if one.fault is not None:
            done.rejected.append(f"{one.name}: {one.fault}")
        elif one.id in seen:
            done.rejected.append(f"{one.name}: its id {one.id!r} was already used in this source")
        elif one.id in known:
            done.skipped += 1
        else:
            yield one
        seen.add(one.id)


def _batches(images: Iterable[Importable], size: int) -> Iterator[list[Importable]]:
    part: list[Importable] = []
    held = 0
    for one in images:
        if part and (len(part) == size or held + len(one.data) > MAX_BATCH_BYTES):
            yield part
            part, held = [], 0
        part.append(one)
        held += len(one.data)
    if part:
        yield part


def _add_or_halve(client: httpx.Client, gallery: str, part: Sequence[Importable]) -> list[str]:
    """Adds one batch; halves a batch that is refused as a whole until the image at fault is found."""
    try:
        return add_items(client, gallery, part, wait=False)
    except ServiceRefused as err:
        if err.answer is None or err.answer.status_code not in _REFUSES_WHOLE_BATCH:
            raise
        if len(part) > 1:
            middle = len(part) // 2
            return [*_add_or_halve(client, gallery, part[:middle]), *_add_or_halve(client, gallery, part[middle:])]
        return [f"{part[0].name}: {err.answer.json()['detail']}"]


def _folder(root: Path) -> Iterator[Importable]:
    for path in sorted(root.rglob("*")):  # a fixed order: a second run continues the first
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            name = path.relative_to(root).as_posix()
            yield _from_file(path, name, item_id(name), {"path": name}, None)


def _zip(path: Path) -> Iterator[Importable]:
    with zipfile.ZipFile(path) as archive:
        for entry in sorted(archive.infolist(), key=lambda one: one.filename):
            if entry.is_dir() or PurePosixPath(entry.filename).suffix.lower() not in SUFFIXES:
                continue
            name = entry.filename
            fault, data = _too_large(entry.file_size), b""  # checked first: a small archive may unpack to gigabytes
            try:
                data = b"" if fault else archive.read(entry)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):
                # RuntimeError: encrypted, or compressed by an unknown method.
                fault = "cannot be unpacked"
            yield Importable(id=item_id(name), name=name, data=data, metadata={"path": name}, fault=fault)


def _csv(path: Path) -> Iterator[Importable]:
    """Reads columns `path` (required, inside the table's folder), `id`, `caption`; all others are metadata."""
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
        rows = csv.DictReader(file)
        if "path" not in (rows.fieldnames or ()):
            raise UnreadableSource(f"{path} has no column 'path'.")
        for row in rows:
            name = row.pop("path") or ""
            chosen, caption = row.pop("id", None) or item_id(name), row.pop("caption", None) or None
            metadata: dict[str, object] = {key: value for key, value in row.items() if key and value is not None}
            found = path.parent / name
            if not found.resolve().is_relative_to(path.parent.resolve()):
                # A table from elsewhere must not name, and so upload, other files of this machine.
                fault = "lies outside the table's folder"
                yield Importable(id=chosen, name=name, data=b"", metadata=metadata, caption=caption, fault=fault)
            else:
                yield _from_file(found, name, chosen, metadata, caption)


def _webdataset(path: Path) -> Iterator[Importable]:
    """Reads samples: adjacent files with one key, an image, `.json` metadata, `.txt` caption."""
    with tarfile.open(path) as archive:
        key, parts = "", dict[str, bytes | str]()
        for entry in archive:
            if not entry.isfile():
                continue
            folder, _, last = entry.name.rpartition("/")
            stem, _, suffix = last.partition(".")
            this = f"{folder}/{stem}".lstrip("./")  # webdataset: the key ends at the first dot of the file's name
            if this != key:
                yield from _sample(key, parts)
                key, parts = this, {}
            file = archive.extractfile(entry)
            fault = _too_large(entry.size)
            if file is not None:
                parts[f".{suffix.lower()}"] = fault or file.read()
        yield from _sample(key, parts)


def _sample(key: str, parts: dict[str, bytes | str]) -> Iterator[Importable]:
    """Yields the image of a sample, if it has one; a `str` among the parts is the fault of that file."""
    image = next((parts[suffix] for suffix in parts if suffix in SUFFIXES), None)
    if image is None:
        return
    metadata: dict[str, object] = {"path": key}
    fault = image if isinstance(image, str) else None
    caption = parts.get(".txt")
    try:
        read = json.loads(parts.get(".json", b"{}"))
        metadata.update(read if isinstance(read, dict) else {"json": read})
        text = caption.decode().strip() if isinstance(caption, bytes) else None
    except ValueError:
        fault, text = "its .json or .txt cannot be read", None
    data = image if isinstance(image, bytes) else b""
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
        fault = f"the id {chosen[:40]!r} is not valid: use letters, digits and ._:-"
    return Importable(id=chosen, name=name, data=data, metadata=metadata, caption=caption, fault=fault)


def _too_large(size: int) -> str | None:
    return f"is over {MAX_FILE_BYTES >> 20} MiB" if size > MAX_FILE_BYTES else None
