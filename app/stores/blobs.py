"""Content-addressed pictures behind fsspec: on disk before the row that names them."""

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import fsspec
import sqlalchemy as sa

from app.errors import Damaged, DiskFull, EngineUnavailable, NotFound
from app.stores.sql import metadata
from app.stores.sql.database import Database
from app.stores.sql.failpoints import failpoint
from app.stores.sql.tables import items, supports

BLOBS_AT_ONCE = 500
BLOBS_A_TURN = 16
"""Most pictures deleted in one of the writer's turns: others wait for no more."""
_NAME = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """Bytes under their own SHA-256.

    Args:
        url: a folder or any fsspec URL; a local folder is written with temp, fsync, rename.
    """

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def put(self, data: bytes, *, was_just_put: bool = False) -> str:
        """Store bytes durably; equal bytes are stored once, and again where those stored are found damaged.

        Args:
            was_just_put: by this caller, who only makes sure that they were not removed since: their size is enough.

        Returns:
            Their SHA-256, the name to read them by.

        Raises:
            DiskFull: no space left.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        if self._size(path) == len(data) and (was_just_put or self._is_sound(path, sha256)):
            return sha256
        try:
            if self._is_local:
                _write_durably(Path(path), data)
            else:
                self._fs.pipe_file(path, data)
        except OSError as err:
            if err.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskFull("No space left to store the image.") from err
            if err.errno in {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}:
                raise EngineUnavailable("The image cannot be stored just now.", retry_after_s=5.0) from err
            raise
        return sha256

    def get(self, sha256: str) -> bytes:
        """The bytes of that name.

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

    def has(self, sha256: str) -> bool:
        """Whether bytes of that name are stored."""
        return bool(self._fs.exists(self._path(sha256)))

    def names(self) -> Iterator[str]:
        """The SHA-256 of everything stored."""
        for path in self._fs.find(self._root) if self._fs.exists(self._root) else ():
            name = path.rsplit("/", 1)[1]
            if _NAME.fullmatch(name):
                yield name

    def delete(self, sha256: str) -> None:
        """Remove bytes that nothing names any more; absent ones are fine."""
        path = self._path(sha256)
        if self._fs.exists(path):
            self._fs.rm_file(path)

    def remove_temporary(self) -> None:
        """Remove what a killed process left half written; files of the last hour may be at work still."""
        if not self._is_local:
            return
        for path in Path(self._root).glob("??/.*"):
            if path.stat().st_mtime < time.time() - 3600:
                path.unlink(missing_ok=True)

    def count(self) -> int:
        """How many blobs are stored."""
        return sum(1 for _ in self.names())

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
            # Gone since, or it cannot be read: it is written again.
            return False
        return hashlib.sha256(data).hexdigest() == sha256

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"


def _write_durably(path: Path, data: bytes) -> None:
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder is on disk when its parent says so.
        _sync_folder(path.parent.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        failpoint("blob.temporary")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    failpoint("blob.renamed")


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def stored_images(database: Database, blobs: Blobs, pictures: Iterable[bytes]) -> Iterator[list[str]]:
    """Stores pictures for a block that names them by their SHA-256; where it fails they are collected again.

    Raises:
        DiskFull: no space left for one of them.
    """
    digests: list[str] = []
    try:
        digests.extend(blobs.put(data) for data in pictures)
        yield digests
    except BaseException:
        collect_garbage_later(database, blobs, set(digests))
        raise


def collect_garbage_later(database: Database, blobs: Blobs, candidates: Set[str]) -> None:
    """As `collect_garbage`, but after the caller's answer; what fails is logged and left to a vacuum."""
    ordered = sorted(candidates)
    for start in range(0, len(ordered), BLOBS_AT_ONCE):
        database.later(collect_garbage, database, blobs, set(ordered[start : start + BLOBS_AT_ONCE]))


def collect_garbage(database: Database, blobs: Blobs, candidates: Set[str]) -> int:
    """Delete those of `candidates` (SHA-256) that neither a live item nor a support names; returns how many.

    It deletes in the writer's turn, in which writers also make sure of the pictures they name: so no process
    deletes what another is about to name. While a backup holds pictures back nothing is deleted; a vacuum
    finds it later.
    """
    unnamed = _unnamed(database, sorted(candidates))
    count = 0
    for start in range(0, len(unnamed), BLOBS_A_TURN):
        part = unnamed[start : start + BLOBS_A_TURN]
        with database.write() as connection:
            if are_held(connection):
                return count
            gone = set(part) - named(connection, part)
            for sha256 in gone:
                blobs.delete(sha256)
            count += len(gone)
    if candidates:
        failpoint("blobs.collected")
    return count


def named(connection: sa.Connection, digests: list[str]) -> set[str]:
    """Those of some SHA-256 that a live item or a support names."""
    live = sa.select(items.c.sha256).where(items.c.sha256.in_(digests), items.c.deleted_seq.is_(None))
    kept = sa.select(supports.c.sha256).where(supports.c.sha256.in_(digests))
    return set(connection.execute(live.union(kept)).scalars())


def are_held(connection: sa.Connection) -> bool:
    """Whether a backup is copying pictures just now."""
    return float(metadata.read(connection, metadata.IMAGES_HELD_UNTIL) or 0) > time.time()


def _unnamed(database: Database, digests: list[str]) -> list[str]:
    """A first look that keeps no writer waiting."""
    found: list[str] = []
    for start in range(0, len(digests), BLOBS_AT_ONCE):
        part = digests[start : start + BLOBS_AT_ONCE]
        with database.read(limit_s=None) as connection:
            kept = named(connection, part)
        found.extend(one for one in part if one not in kept)
    return found
