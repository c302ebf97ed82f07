"""Stored images by their SHA-256, behind fsspec, and their garbage collection.

An image is on disk before the row that names it, and is removed after the last row that named it.
"""

import errno
import hashlib
import io
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import fsspec
import sqlalchemy as sa

from app.errors import Damaged, DiskFull, EngineUnavailable, NotFound
from app.stores.sql import metadata
from app.stores.sql.database import Database, failpoint
from app.stores.sql.tables import IS_LIVE, batches, items, supports

IMAGE_FOLDER = "blobs"  # inside the data folder
BLOBS_PER_WRITE = 16  # most images deleted in one transaction, so that writers wait for no more
TEMPORARY_S = 3600  # no write takes as long
WHOLE_BYTES = 1 << 20  # larger blobs are read in parts
PART_BYTES = 1 << 18
_NAME = re.compile(r"[0-9a-f]{64}")
# Of all live items and supports.
NAMED_IMAGES = sa.select(items.c.sha256).where(IS_LIVE).union(sa.select(supports.c.sha256))


class OpenBlob:
    """Stored bytes, checked when they were opened and read in parts: a slow reader holds a part, not an image.

    Attributes:
        size: number of bytes.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.size = size
        self._file = file

    @property
    def is_whole(self) -> bool:
        """Whether one call of `read`, without waiting, returns all."""
        return self.size <= WHOLE_BYTES

    def read(self) -> bytes:
        """Return the next part, empty at the end."""
        return self._file.read(WHOLE_BYTES if self.is_whole else PART_BYTES)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Blobs:
    """Bytes under their own SHA-256.

    Args:
        url: a folder or any fsspec URL; in a local folder, files are written with temp, fsync, rename.
    """

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def put(self, data: bytes, *, was_just_put: bool = False) -> str:
        """Store bytes durably. Equal bytes are stored once, and again if the stored ones are damaged.

        Args:
            was_just_put: the caller put them before and only checks that they were not collected since; comparing
                the size is enough then.

        Returns:
            Their SHA-256, the name to read them by.

        Raises:
            DiskFull: no space left.
            EngineUnavailable: the folder cannot be written now.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        if self._size(path) == len(data) and (was_just_put or self._is_sound(path, sha256)):
            return sha256
        try:
            if self._is_local:
                write_durably(Path(path), data)
            else:
                self._fs.pipe_file(path, data)  # object stores write whole objects
        except OSError as err:
            if err.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskFull("No space left to store the image.") from err
            if err.errno in {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}:
                raise EngineUnavailable("The image cannot be stored now.", retry_after_s=5.0) from err
            raise
        return sha256

    def get(self, sha256: str) -> bytes:
        """Return the bytes of that name.

        Raises:
            NotFound: none are stored.
            Damaged: they are not what was stored.
        """
        try:
            data: bytes = self._fs.cat_file(self._path(sha256))
        except FileNotFoundError as err:
            raise NotFound("The stored image is gone.") from err
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Damaged("The stored image is damaged.")
        return data

    def open(self, sha256: str) -> OpenBlob:
        """Open the bytes of that name; the caller closes them. Raises as `get`."""
        path = self._path(sha256)
        if (size := self._size(path)) is None or size <= WHOLE_BYTES:
            data = self.get(sha256)
            return OpenBlob(io.BytesIO(data), len(data))
        try:
            file = self._fs.open(path, "rb")
        except FileNotFoundError as err:
            raise NotFound("The stored image is gone.") from err
        digest = hashlib.sha256()
        while part := file.read(WHOLE_BYTES):
            digest.update(part)
        if digest.hexdigest() != sha256:
            file.close()
            raise Damaged("The stored image is damaged.")
        file.seek(0)
        return OpenBlob(file, size)

    def has(self, sha256: str) -> bool:
        """Whether bytes of that name are stored."""
        return bool(self._fs.exists(self._path(sha256)))

    def names(self) -> Iterator[str]:
        """Iterate over the SHA-256 of everything stored."""
        for path in self._fs.find(self._root) if self._fs.exists(self._root) else ():
            name = path.rsplit("/", 1)[1]
            if _NAME.fullmatch(name):  # not a temporary file
                yield name

    def delete(self, sha256: str) -> None:
        """Remove the bytes of that name, if they are stored."""
        path = self._path(sha256)
        if self._fs.exists(path):
            self._fs.rm_file(path)

    def remove_temporary(self) -> None:
        """Remove files that a killed process left half written; younger ones may still be in use."""
        if not self._is_local:
            return
        for path in Path(self._root).glob("??/.*"):
            if path.stat().st_mtime < time.time() - TEMPORARY_S:
                path.unlink(missing_ok=True)

    def _size(self, path: str) -> int | None:
        try:
            size: int | None = self._fs.size(path)
        except FileNotFoundError:
            return None
        return size

    def _is_sound(self, path: str, sha256: str) -> bool:
        try:
            data: bytes = self._fs.cat_file(path)
        except OSError:
            return False  # gone since, or unreadable: it is written again
        return hashlib.sha256(data).hexdigest() == sha256

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"


@contextmanager
def stored_images(database: Database, blobs: Blobs, images: Iterable[bytes]) -> Iterator[list[str]]:
    """Store images for a block that names them by their SHA-256; if the block fails they are collected again.

    Raises:
        DiskFull: no space left for one of them.
    """
    digests: list[str] = []
    try:
        digests.extend(blobs.put(data) for data in images)
        yield digests
    except BaseException:  # a cancelled request leaves images too
        collect_garbage_later(database, blobs, set(digests))
        raise


def collect_garbage_later(database: Database, blobs: Blobs, candidates: Set[str]) -> None:
    """Run `collect_garbage` in the background; a failure is logged, and a vacuum makes up for it."""
    for part in batches(sorted(candidates)):
        database.later(collect_garbage, database, blobs, part)


def collect_garbage(database: Database, blobs: Blobs, candidates: Sequence[str]) -> int:
    """Delete those of a batch of SHA-256 that neither a live item nor a support names; returns how many.

    Nothing is deleted while a backup holds images; a vacuum finds them later.
    """
    with database.read(limit_s=None) as connection:  # a first look that keeps no writer waiting
        used = _named(connection, candidates)
    count = 0
    for part in batches((one for one in candidates if one not in used), BLOBS_PER_WRITE):
        # Deleted in a write transaction, in which writers also check the images they name: no process deletes an
        # image that another is about to name.
        with database.write() as connection:
            if float(metadata.read(connection, metadata.IMAGES_HELD_UNTIL) or 0) > time.time():
                return count
            unused = set(part) - _named(connection, part)
            for sha256 in unused:
                blobs.delete(sha256)
            count += len(unused)
    failpoint("blobs.collected")
    return count


def sync_path(path: Path) -> None:
    """Flush a file or folder to disk; a new name is durable once its folder is flushed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named(connection: sa.Connection, digests: Sequence[str]) -> set[str]:
    """Return those SHA-256 that a live item or a support names."""
    live = sa.select(items.c.sha256).where(items.c.sha256.in_(digests), IS_LIVE)
    of_supports = sa.select(supports.c.sha256).where(supports.c.sha256.in_(digests))
    return set(connection.execute(live.union(of_supports)).scalars())


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; it is on disk when this returns."""
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_path(path.parent.parent)  # the new folder's own name
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        sync_path(temporary)
        failpoint("blob.temporary")
        temporary.replace(path)  # atomic: a reader sees all of the file or none
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)
    failpoint("blob.renamed")
