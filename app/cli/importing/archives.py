"""Entries of folders, ZIP archives and tars. Nothing is extracted to disk: a name like `../a.png` only makes an id."""

import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from app.cli.importing.entries import MAX_SIDECAR_BYTES, Entry, import_entries, make_entry
from app.cli.importing.files import (
    SIDECARS,
    Importable,
    SourceOptions,
    UnreadableFile,
    UnreadableSource,
    printable,
    split_suffix,
    status_of,
    too_large,
)

_ENCRYPTED, _UTF8 = 0x1, 0x800  # flags of a ZIP entry
_UNICODE_PATH = 0x7075  # an extra field of a ZIP entry
_MAX_HELD_BYTES = 256 << 20  # sidecars of a compressed tar, which are read ahead


def read_folder(root: Path, options: SourceOptions) -> Iterator[Importable]:
    """Yields the files of a folder and its subfolders in the order of their names; linked folders are not entered."""
    yield from import_entries([*_walk(root, root)], options.prefix)


def read_zip(path: Path, options: SourceOptions) -> Iterator[Importable]:
    """Yields the files of a ZIP archive in the order of their names."""
    with zipfile.ZipFile(path) as archive:
        files = [(one, _zip_name(one, options.zip_names)) for one in archive.infolist() if not one.is_dir()]
        unknown = [one.filename for one, name in files if name is None]
        if unknown:
            names = f"{len(unknown)} names that are not {options.zip_names} were read as code page 437, such as"
            hint = "--zip-names cp932 reads them as Japanese, gbk as Chinese, cp949 as Korean"
            options.note(f"{path}: {names} {printable(unknown[0])}: {hint}")
        entries = [_zip_entry(archive, one, name or one.filename) for one, name in files]
        yield from import_entries(sorted(entries, key=lambda one: one.name), options.prefix)


def read_webdataset(path: Path, options: SourceOptions) -> Iterator[Importable]:
    """Yields the samples of a tar in its order; the files of one sample need not be adjacent."""
    with tarfile.open(path) as archive:
        yield from import_entries(_tar_entries(archive, path), options.prefix, by_key=True)


def _walk(root: Path, folder: Path) -> Iterator[Entry]:
    try:
        found = sorted(os.scandir(folder), key=lambda one: one.name)
    except OSError as err:
        name = folder.relative_to(root).as_posix()
        fault = f"the folder cannot be read: {err.strerror}"
        yield Entry(name=name, size=0, read=partial(_read_file, folder), is_image=True, fault=fault)
        return
    for one in found:  # a fixed order: a second run continues the first
        path = Path(one.path)
        name = path.relative_to(root).as_posix()
        if one.is_dir(follow_symlinks=False):
            yield from _walk(root, path)
            continue
        status = status_of(path)
        if status is None:  # a broken link, one that leads to itself: reading it tells why
            yield make_entry(name, 0, partial(_read_file, path))
        elif stat.S_ISREG(status.st_mode):
            yield make_entry(name, status.st_size, partial(_read_file, path))
        else:  # never opened, nor is a link to it: a pipe waits for a writer, a device may never end
            is_folder = stat.S_ISDIR(status.st_mode)
            other = "a link to a folder, which is not followed" if is_folder else "a device, socket or pipe"
            yield Entry(name=name, size=0, read=partial(_read_file, path), is_image=False, other=other)


def _read_file(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as err:
        raise UnreadableFile(err.strerror or "cannot be read") from err


def _zip_entry(archive: zipfile.ZipFile, one: zipfile.ZipInfo, name: str) -> Entry:
    name = name.replace("\\", "/").removeprefix("./")  # old programs of Windows
    fault = "is encrypted" if one.flag_bits & _ENCRYPTED else None
    # The size is checked before anything is read: a small archive may unpack to gigabytes.
    return make_entry(name, one.file_size, partial(_read_zipped, archive, one), fault)


def _zip_name(one: zipfile.ZipInfo, encoding: str) -> str | None:
    """Returns an entry's name; None where it neither says what it is nor has the encoding."""
    if one.flag_bits & _UTF8 or one.filename.isascii():
        return one.filename
    raw = one.filename.encode("cp437")  # as which the library has decoded it
    try:
        return _unicode_path(one.extra, raw) or raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Returns the name in the extra field of Info-ZIP (APPNOTE 4.6.9), if it is of the raw name; may raise."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and content[1:5] == struct.pack("<I", zlib.crc32(raw)):
            return content[5:].decode("utf-8")
    return None


def _read_zipped(archive: zipfile.ZipFile, one: zipfile.ZipInfo, limit: int) -> bytes:
    try:
        with archive.open(one) as file:
            return file.read(limit)
    except NotImplementedError as err:
        raise UnreadableFile(f"cannot be unpacked: {err}") from err
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as err:
        raise UnreadableFile("cannot be unpacked") from err


def _tar_entries(archive: tarfile.TarFile, path: Path) -> list[Entry]:
    """All entries, found in one pass. Raises UnreadableSource if the archive is damaged or cut short."""
    is_plain = isinstance(archive.fileobj, io.BufferedReader)
    entries: list[Entry] = []
    held = 0
    for member in archive:
        if member.isdir():
            continue
        name = member.name.removeprefix("./").lstrip("/")
        read = partial(_read_member, archive, member)
        if not (member.isreg() or member.islnk() or member.issym()):
            entries.append(Entry(name=name, size=0, read=read, is_image=False, other="a device or pipe"))
            continue
        if not is_plain and split_suffix(name)[1] in SIDECARS and member.isreg() and member.size <= MAX_SIDECAR_BYTES:
            # Going back in a compressed tar decompresses it from its start.
            data = read(-1)
            held += len(data)
            if held > _MAX_HELD_BYTES:
                raise UnreadableSource(
                    f"{path} holds over {_MAX_HELD_BYTES >> 20} MiB of metadata: decompress it first."
                )
            read = partial(_first_bytes, data)
        entries.append(make_entry(name, member.size, read))
    _check_end(archive, path)
    return entries


def _check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Raises UnreadableSource unless the archive ends with zeros: the library takes a damaged header for the end."""
    file = archive.fileobj
    if file is None:
        return
    file.seek(archive.offset)
    rest = file.read(1 << 20)  # padding is 10 KB
    if rest.strip(b"\0"):
        raise UnreadableSource(
            f"{path} is damaged at byte {archive.offset}, or several tars were joined: import them one by one."
        )
    if not rest:
        raise UnreadableSource(f"{path} has no end marker: it was cut short, or is still being written.")


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    try:
        file = archive.extractfile(member)  # of a link: the file that it names inside the archive
        if file is None:
            raise UnreadableFile("links to something that is no file")
        size = file.seek(0, io.SEEK_END)
        if limit < 0 and (fault := too_large(size)):
            raise UnreadableFile(fault)
        file.seek(0)
        return file.read(limit)
    except KeyError as err:
        link = printable(member.linkname)
        raise UnreadableFile(f"links to {link!r}, which is not in the archive before it") from err
    except RecursionError as err:
        raise UnreadableFile("links to itself") from err
    except (tarfile.TarError, zlib.error, EOFError, OSError) as err:
        raise UnreadableFile("cannot be unpacked") from err


def _first_bytes(data: bytes, limit: int) -> bytes:
    return data if limit < 0 else data[:limit]
