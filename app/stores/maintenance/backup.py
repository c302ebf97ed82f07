"""Whole copies of a store: a folder with an SQLite file and the pictures it names, whatever it came from.

A copy is taken while the service runs: the rows in one transaction, the pictures while none are collected.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from app.stores.blobs import Blobs
from app.stores.sql import change_log, metadata
from app.stores.sql.database import SQLITE_FILE, Database
from app.stores.sql.engines import migrate, sqlite_engine
from app.stores.sql.tables import galleries, items, schema, supports

FORMAT = 1
MANIFEST = "manifest.json"
PICTURES = "blobs"
ROWS_AT_ONCE = 1000
HOLD_S = 24 * 3600.0
"""Longest a backup holds pictures back, should it die."""

Progress = Callable[[int, int], None]
T = TypeVar("T")


class BackupRefused(RuntimeError):
    """A backup cannot be written or read; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackedUp:
    """What a copy holds."""

    seq: int
    items: int
    pictures: int


def write_backup(database: Database, blobs: Blobs, folder: Path, progress: Progress = lambda *_: None) -> BackedUp:
    """Copy a store into a new folder.

    Args:
        progress: told of pictures done and in all.

    Raises:
        BackupRefused: the folder exists.
        app.errors.ServiceError: a picture is gone or damaged, or the disk is full; no folder is left then.
    """
    if folder.exists():
        raise BackupRefused(f"{folder} exists already.")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    hold = _hold_pictures(database)
    try:
        seq = _copy_out(database, part / SQLITE_FILE)
        found = _named_pictures(part / SQLITE_FILE)
        target = Blobs(str(part / PICTURES))
        for done, sha256 in enumerate(found, start=1):
            target.put(blobs.get(sha256))
            progress(done, len(found))
        counts = _count_items(part / SQLITE_FILE)
        _write_manifest(part, seq, counts, len(found))
        _sync_folder(part)
        part.rename(folder)
        _sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        _let_go_of_pictures(database, hold)
    return BackedUp(seq=seq, items=counts, pictures=len(found))


def restore_backup(folder: Path, database: Database, blobs: Blobs, progress: Progress = lambda *_: None) -> BackedUp:
    """Bring a copy into an empty store: pictures first, then all rows in one transaction.

    Raises:
        BackupRefused: the copy is damaged, or the store is not empty; nothing was written then.
    """
    manifest = _read_manifest(folder)
    with tempfile.TemporaryDirectory(prefix="vermouth-restore-") as temporary:
        # A copy, for to open and to migrate it is to write: what was kept stays as it is, and may be read-only.
        kept_rows = Path(shutil.copyfile(folder / SQLITE_FILE, Path(temporary) / SQLITE_FILE))
        return _restore(folder, kept_rows, manifest, database, blobs, progress)


def _restore(
    folder: Path, kept_rows: Path, manifest: dict[str, int], database: Database, blobs: Blobs, progress: Progress
) -> BackedUp:
    source = sqlite_engine(kept_rows)
    try:
        migrate(source)
        with database.read(limit_s=None) as connection:
            _require_empty(connection)
        kept = Blobs(str(folder / PICTURES))
        found = _named_pictures(kept_rows)
        for done, sha256 in enumerate(found, start=1):
            blobs.put(kept.get(sha256))
            progress(done, len(found))
        with source.connect() as reader, database.write() as writer:
            # Once more: a service may have begun on it while pictures were copied.
            _require_empty(writer)
            for table in reversed(schema.sorted_tables):
                writer.execute(sa.delete(table))
            _copy_tables(reader, writer)
            # Snapshots of indexes made before belong to another history.
            metadata.renew_identity(writer)
            if database.is_shared:
                _follow_ids(writer)
    finally:
        source.dispose()
    return BackedUp(seq=manifest["seq"], items=manifest["items"], pictures=manifest["pictures"])


def _require_empty(connection: sa.Connection) -> None:
    if connection.execute(sa.select(galleries.c.id).limit(1)).first() is not None:
        raise BackupRefused("The store to restore into is not empty.")


def _copy_out(database: Database, path: Path) -> int:
    target = sqlite_engine(path)
    try:
        migrate(target)
        with database.read(limit_s=None) as reader, target.connect() as connection:
            writer = connection.execution_options(vermouth_writes=True)
            with writer.begin():
                for table in reversed(schema.sorted_tables):
                    writer.execute(sa.delete(table))
                _copy_tables(reader, writer)
                metadata.write(writer, metadata.IMAGES_HELD_UNTIL, "0")
                seq = change_log.head(writer)
        # One file, without a log beside it.
        with target.connect() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
    finally:
        target.dispose()
    return seq


def _copy_tables(reader: sa.Connection, writer: sa.Connection) -> None:
    for table in schema.sorted_tables:
        found = reader.execute(sa.select(table), execution_options={"yield_per": ROWS_AT_ONCE})
        for rows in found.mappings().partitions():
            writer.execute(sa.insert(table), [dict(row) for row in rows])


def _follow_ids(writer: sa.Connection) -> None:
    """PostgreSQL counts on from the rows it was given."""
    last = writer.execute(sa.select(sa.func.coalesce(sa.func.max(items.c.id), 0))).scalar_one()
    sequence = sa.func.pg_get_serial_sequence("items", "id")
    writer.execute(sa.select(sa.func.setval(sequence, last + 1, False)))


def _named_pictures(path: Path) -> list[str]:
    live = sa.select(items.c.sha256).where(items.c.deleted_seq.is_(None))
    return _from_file(path, lambda c: sorted(c.execute(live.union(sa.select(supports.c.sha256))).scalars()))


def _count_items(path: Path) -> int:
    live = sa.select(sa.func.count()).where(items.c.deleted_seq.is_(None))
    return _from_file(path, lambda c: int(c.execute(live).scalar_one()))


def _from_file(path: Path, ask: Callable[[sa.Connection], T]) -> T:
    engine = sqlite_engine(path)
    try:
        with engine.connect() as connection:
            return ask(connection)
    finally:
        engine.dispose()


def _hold_pictures(database: Database) -> str:
    """Let no picture be collected; returns what tells this hold from another's."""
    hold = repr(time.time() + HOLD_S)
    with database.write() as connection:
        metadata.write(connection, metadata.IMAGES_HELD_UNTIL, hold)
    return hold


def _let_go_of_pictures(database: Database, hold: str) -> None:
    with database.write() as connection:
        # A backup that began later goes on holding them.
        if metadata.read(connection, metadata.IMAGES_HELD_UNTIL) == hold:
            metadata.write(connection, metadata.IMAGES_HELD_UNTIL, "0")


def _write_manifest(folder: Path, seq: int, item_count: int, pictures: int) -> None:
    manifest = {
        "format": FORMAT,
        "seq": seq,
        "items": item_count,
        "pictures": pictures,
        "sha256": _sha256(folder / SQLITE_FILE),
    }
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_manifest(folder: Path) -> dict[str, int]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        is_sound = manifest["format"] == FORMAT and manifest["sha256"] == _sha256(folder / SQLITE_FILE)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise BackupRefused(f"{folder} holds no backup.") from err
    if not is_sound:
        raise BackupRefused(f"The backup in {folder} is damaged.")
    return {name: int(manifest[name]) for name in ("seq", "items", "pictures")}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
