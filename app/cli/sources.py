"""Images of a command line: files, folders, drawings, items of a gallery, and stdin."""

import itertools
import json
import sys
import unicodedata
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.cli.importing.files import is_system, printable
from app.cli.main import CommandError
from vermouth_client import ImageLike, Item, Strokes
from vermouth_client.bulk import SUFFIXES
from vermouth_client.svg import utf8_svg

_ITEM = "item:"
_DRAWINGS = frozenset({".json", ".ndjson", ".jsonl"})
HELP = "Image files, folders of them, drawings (.svg; .json or .ndjson of strokes), item:GALLERY/ID, or - for stdin."


@dataclass(frozen=True, slots=True)
class Source:
    """An image, and the name that its results have.

    Attributes:
        file: begins the names of files of its results; no other source of the command has it in upper or lower case.
    """

    name: str
    image: ImageLike
    file: str = ""

    def read(self) -> ImageLike:
        """The image as it is sent, an SVG in UTF-8. Raises OSError, and ValueError for an SVG of unknown encoding."""
        if isinstance(self.image, bytes):
            return utf8_svg(self.image)
        if isinstance(self.image, Path) and self.image.suffix.lower() == ".svg":
            data = _File(utf8_svg(self.image.read_bytes()))
            data.name = self.image.name
            return data
        return self.image


class _File(bytes):
    """A file in memory, and its name, which is part of a COCO document."""

    name: str


def find_images(arguments: Sequence[str]) -> list[Source]:
    """The images that the arguments stand for, in order; files are read when they are sent.

    Raises:
        CommandError: an argument is none of what `HELP` says, or there is no image in it.
    """
    found = [source for argument in arguments for source in _images_of(argument)]
    return [replace(source, file=file) for source, file in zip(found, _files(found), strict=True)]


def file_for(out: Path, source: Source, sources: Sequence[Source], suffix: str) -> Path:
    """The file for the result of a source: `out`, or of several sources one in the folder `out`, which is created."""
    if len(sources) == 1:
        return out
    out.mkdir(parents=True, exist_ok=True)
    return out / f"{source.file}{suffix}"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file, complete or not at all; a device or a pipe takes the bytes as they come."""
    target = path.resolve()
    if target.exists() and not target.is_file():
        path.write_bytes(content)
        return
    part = target.with_name(f".{uuid.uuid4().hex}")
    try:
        part.write_bytes(content)
        part.replace(target)
    except OSError as err:
        raise OSError(err.errno, err.strerror, str(path)) from err  # the file that the user named
    finally:
        part.unlink(missing_ok=True)


def _files(sources: Sequence[Source]) -> Iterator[str]:
    """A name for each source: its path with `_` for `/`, then `-2` where that is taken, as by `a/b_1` for `a_b/1`."""
    used: set[str] = set()
    for source in sources:
        plain = "_".join(part for part in Path(source.name.replace(":", "/")).parts if part not in ("/", ".."))
        names = (plain if number == 1 else f"{plain}-{number}" for number in itertools.count(1))
        chosen = next(name for name in names if _caseless(name) not in used)
        used.add(_caseless(chosen))
        yield chosen


def _caseless(name: str) -> str:
    """Equal for names that some file systems take for one: in upper and lower case, and in any Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _images_of(argument: str) -> Iterator[Source]:
    path, name = Path(argument), printable(argument)
    if argument == "-":
        yield from _from_stdin(sys.stdin.buffer.read())
    elif argument.startswith(_ITEM):
        gallery, _, item = argument.removeprefix(_ITEM).partition("/")
        if not gallery or not item:
            raise CommandError(f"{name} names no item: write it as item:GALLERY/ID.")
        yield Source(name, Item(gallery, item))
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if _is_image(file, file.relative_to(path)))
        if not files:
            raise CommandError(f"There is no image in the folder {name}.")
        yield from (Source(printable(str(file)), file) for file in files)
    elif not path.exists():
        raise CommandError(f"{name} does not exist.")
    elif path.suffix.lower() in _DRAWINGS:
        yield from _drawings(path.read_bytes(), name, is_lines=path.suffix.lower() != ".json")
    else:
        yield Source(name, path)


def _is_image(file: Path, relative: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not is_system(relative.as_posix()) and file.is_file()


def _drawings(data: bytes, name: str, *, is_lines: bool) -> Iterator[Source]:
    """Drawings as JSON: strokes `[[x…], [y…]]` alone, or as `strokes` with the canvas, or as Quick, Draw!'s lines."""
    try:
        text = data.decode(json.detect_encoding(data))
        if not is_lines:
            yield Source(name, _strokes(json.loads(text)))
            return
        lines = [line for line in text.splitlines() if line.strip()]
        found = [Source(f"{name}:{number}", _strokes(json.loads(line))) for number, line in enumerate(lines, start=1)]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise CommandError(f"{name} holds no strokes: write [[[x…], [y…]], …], or an object with `strokes`.") from err
    if not found:
        raise CommandError(f"{name} is empty.")
    yield from found


def _from_stdin(data: bytes) -> Iterator[Source]:
    try:
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError:
        text = ""
    if not text.lstrip().startswith(("[", "{")):
        yield Source("stdin", data)
        return
    try:
        json.loads(text)
    except (ValueError, RecursionError):  # a JSON value on each line, or none
        yield from _drawings(data, "stdin", is_lines=True)
    else:
        yield from _drawings(data, "stdin", is_lines=False)


def _strokes(value: Any) -> Strokes:
    fields = value if isinstance(value, dict) else {"strokes": value}
    strokes = fields["drawing"] if "drawing" in fields else fields["strokes"]
    if not isinstance(strokes, list) or not all(isinstance(stroke, list) for stroke in strokes):
        raise TypeError("strokes are lists")
    size = {side: fields[side] for side in ("width", "height") if side in fields}
    return Strokes(strokes, **size)
