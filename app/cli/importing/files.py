"""One file of an import: its kind by name and first bytes, its item id, and its limits."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

from app.cli.main import CommandError
from app.imaging.formats import has_image_bytes
from vermouth_client.bulk import ID, SUFFIXES, name_bytes

SIDECARS = frozenset({".json", ".txt", ".id"})  # metadata, caption, item id of the image of that name
MAX_FILE_BYTES = 32 << 20  # the service's default body limit
_SYSTEM = frozenset(
    "__macosx|icon\r|@eadir|@tmp|#snapshot|#recycle|@recycle|$recycle.bin|recycler|system volume information|lost+found"
    "|thumbs.db|ehthumbs.db|ehthumbs_vista.db|desktop.ini".split("|")
)
_HEAD_BYTES = 12


class UnreadableSource(CommandError):
    """The source cannot be read or is of an unknown kind; the message says why."""


class UnreadableFile(Exception):
    """One file cannot be read; the others can. The message is the reason."""


class Skip(StrEnum):
    """Why a file or row is not imported although nothing is wrong with it."""

    KNOWN = "there already"
    SYSTEM = "system or hidden file"
    OTHER = "not an image"
    BLANK = "blank row"
    SIDECAR = "read as metadata, caption or id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Importable:
    """One image to import, or one file or row of the source that is none."""

    id: str  # derived from the source alone, so that a second run finds it again
    name: str  # where the image comes from, for messages
    data: bytes = b""  # the file; empty if there is a fault
    metadata: dict[str, object] = field(default_factory=dict)
    caption: str | None = None
    fault: str | None = None  # why the image cannot be imported
    skip: Skip | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How sources are read.

    Attributes:
        prefix: goes before the name that an id is derived from.
        text: columns of tables that stay text.
        zip_names: encoding of names in ZIP archives that do not say theirs: many programs write UTF-8 without its flag.
        note: receives what the user should know of a source, a line each.
        fetch: returns the image of an item of the service by gallery and id; None without a service.
    """

    prefix: str = ""
    text: tuple[str, ...] = ()
    zip_names: str = "utf-8"
    note: Callable[[str], None] = lambda _: None
    fetch: Callable[[str, str], bytes] | None = None


def id_fault(chosen: str) -> str | None:
    """Returns why an id is not valid, or None."""
    if ID.fullmatch(chosen):
        return None
    return f"the id {printable(chosen[:40])!r} is not valid: use letters, digits and ._:-"


def split_suffix(name: str) -> tuple[str, str]:
    """Returns a name without its last suffix, and the suffix in lower case with its dot."""
    suffix = PurePosixPath(name).suffix
    return name[: len(name) - len(suffix)], suffix.lower()


def is_system(name: str) -> bool:
    """Returns whether a relative path is hidden, or written by an operating system for itself."""
    parts = name.split("/")
    return any(part.lower() in _SYSTEM or (part.startswith(".") and part not in {".", ".."}) for part in parts)


def is_image(name: str, read_head: Callable[[int], bytes]) -> bool:
    """Returns whether a file is an image by its suffix, or by its first bytes if it has none."""
    suffix = split_suffix(name)[1]
    if suffix:
        return suffix in SUFFIXES
    try:
        return has_image_bytes(read_head(_HEAD_BYTES))
    except UnreadableFile:
        return False


def too_large(size: int) -> str | None:
    """Returns why a file of that size is rejected, or None."""
    return f"is over {MAX_FILE_BYTES >> 20} MiB" if size > MAX_FILE_BYTES else None


def printable(name: str) -> str:
    """Returns a name for messages and metadata; control characters, undecodable bytes and half pairs are replaced."""
    text = name_bytes(name).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def status_of(path: Path) -> os.stat_result | None:
    """Returns the status of a file, or of what a link leads to; None if it leads nowhere, or the name is too long."""
    try:
        return path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


def read_beside(table: Path, name: str) -> tuple[bytes, str | None]:
    """Returns a file that a table names, and why it cannot be imported; only files in the table's folder are read."""
    path = table.parent / name
    try:
        # A table from elsewhere must not name, and so upload, other files of this machine.
        if not path.resolve().is_relative_to(table.parent.resolve()):
            return b"", "lies outside the table's folder"
        if not path.is_file():
            other = "is a device, socket or pipe" if path.exists() else "there is no such file"
            return b"", "is a folder" if path.is_dir() else other
        fault = too_large(path.stat().st_size)
        data = b"" if fault else path.read_bytes()
        return data, fault or (None if data else "is empty")
    except (OSError, ValueError, RuntimeError) as err:  # a NUL in the name, a link that leads to itself
        return b"", getattr(err, "strerror", None) or "cannot be read"
