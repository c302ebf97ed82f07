"""Items of an `.ndjson` file: one JSON object a line, as the service exports and lists them."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from app.cli.importing.files import (
    MAX_FILE_BYTES,
    Importable,
    Skip,
    SourceOptions,
    UnreadableFile,
    UnreadableSource,
    id_fault,
    printable,
    read_beside,
    too_large,
)
from app.errors import Malformed
from vermouth_client.bulk import item_id

_READ = frozenset({"id", "metadata", "caption", "image", "path", "image_url"})
# Of an item as the service exports or lists it; a new gallery gives it new ones.
_DERIVED = frozenset(
    {"vector", "visual_vector", "sha256", "media_type", "width", "height", "created_at", "seq", "fingerprint"}
)
_IMAGE_PATH = re.compile(r"/galleries/([a-z0-9][a-z0-9_-]*)/items/([A-Za-z0-9][A-Za-z0-9._:-]*)/image(?=\?|$)")
_MAX_LINE_BYTES = 2 * MAX_FILE_BYTES  # an image in base64, and its metadata


def read_records(path: Path, options: SourceOptions) -> Iterator[Importable]:
    """Yields one importable for each line.

    A line has `id`, `metadata`, `caption`, and its image as `{"base64": …}`, as `path` of a file in the folder, or as
    `image_url` of an item of the service.

    Raises:
        UnreadableSource: a line is too long to be one.
    """
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file, path), start=1):
            name = f"{printable(path.name)} (line {number})"
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not text:
                yield Importable(id="", name=name, skip=Skip.BLANK)
                continue
            try:
                yield _importable(text, name, path, options)
            except UnreadableFile as err:
                yield Importable(id="", name=name, fault=str(err))


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE_BYTES):
        if len(line) == _MAX_LINE_BYTES:
            raise UnreadableSource(f"{path} has a line of over {_MAX_LINE_BYTES >> 20} MiB: it is no NDJSON.")
        yield line


def _importable(text: bytes, name: str, path: Path, options: SourceOptions) -> Importable:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise UnreadableFile(f"is not JSON: {err}") from err
    if not isinstance(line, dict):
        raise UnreadableFile("is no JSON object")
    if unknown := line.keys() - _READ - _DERIVED:
        raise UnreadableFile(f"has the unknown field {printable(min(unknown))!r}: put it into metadata")
    metadata, caption = line.get("metadata") or {}, line.get("caption")
    if not isinstance(metadata, dict) or not isinstance(caption, str | None):
        raise UnreadableFile("metadata must be an object, and caption a string")
    data = _image(line, path, options)
    chosen = line.get("id")
    if chosen is None:
        file = line.get("path")
        digest = hashlib.sha256(data).hexdigest()[:24]
        chosen = item_id(options.prefix + (file if isinstance(file, str) else f"i_{digest}"))
    fault = id_fault(str(chosen))
    return Importable(id=str(chosen), name=name, data=data, metadata=metadata, caption=caption, fault=fault)


def _image(line: dict[str, object], path: Path, options: SourceOptions) -> bytes:
    image, file, url = line.get("image"), line.get("path"), line.get("image_url")
    if isinstance(image, dict) and isinstance(image.get("base64"), str):
        return _decoded(image["base64"])
    if isinstance(file, str):
        data, fault = read_beside(path, file)
        if fault is not None:
            raise UnreadableFile(f"{printable(file)} {fault}")
        return data
    if isinstance(url, str):
        # Only the path, on the service of --url: a file must not send the key to another host.
        found = _IMAGE_PATH.search(url)
        if found is None:
            raise UnreadableFile("its image_url is no item's image")
        return b"" if options.fetch is None else options.fetch(found[1], found[2])
    raise UnreadableFile('has no image: neither {"base64": …}, path nor image_url')


def _decoded(text: str) -> bytes:
    from app.imaging.sources import decode_base64  # here: help must not import the decoders

    try:
        decoded = decode_base64(text)
    except Malformed as err:
        raise UnreadableFile(f"its image is not valid base64: {err.detail}") from err
    if fault := too_large(len(decoded)) or (None if decoded else "is empty"):
        raise UnreadableFile(f"its image {fault}")
    return decoded
