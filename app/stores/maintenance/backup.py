"""Backups: a folder with an SQLite file and the images it names, whichever database they came from.

A backup is taken while the service runs: rows in one transaction, images while their garbage collection is held.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from app.stores.blobs import NAMED_IMAGES, Blobs, file_sha256, sync_path, write_durably
from app.stores.maintenance.faults import damage, guarded, row_faults, text_faults
from app.stores.sql import change_log, metadata
from app.stores.sql.database import SQLITE_FILE, Database
from app.stores.sql.engines import migrate, sqlite_engine
from app.stores.sql.tables import IS_LIVE, galleries, items, schema

FORMAT = 1
MANIFEST = "manifest.json"
IMAGES = "blobs"
MAX_FAULTS = 10
ROWS_AT_ONCE = 1000
HOLD_S = 24 * 3600.0  # longest that a backup holds images back, in case it dies

Progress = Callable[[int, int], None]  # called with (done, total) after each copied image


class BackupRefused(RuntimeError):
    """A backup cannot be written or read; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackedUp:
    """What a backup holds."""

    seq: int
    items: int
    images: int


def write_backup(database: Database, blobs: Blobs, folder: Path, progress: Progress | None = None) -> BackedUp:
    """Copy a store into a new folder.

    Raises:
        BackupRefused: the folder exists, or some rows are damaged or could not be restored.
        app.errors.ServiceError: an image is missing or damaged, or the disk is full; no folder is left then.
    """
    if folder.exists():
        raise BackupRefused(f"{folder} exists already: choose a new folder.")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with _held_images(database):  # before the rows are read: no image they name is collected
        try:
            seq = _copy_out(database, part / SQLITE_FILE)
            named, count = _contents(part / SQLITE_FILE)
            _copy_images(blobs, Blobs(str(part / IMAGES)), named, progress)
            backup = BackedUp(seq=seq, items=count, images=len(named))
            _write_manifest(part, backup)
            sync_path(part)
            part.rename(folder)  # a folder of that name is a whole backup
            sync_path(folder.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return backup


def restore_backup(folder: Path, database: Database, blobs: Blobs, progress: Progress | None = None) -> BackedUp:
    """Restore a backup into an empty store: images first, then all rows in one transaction.

    Raises:
        BackupRefused: the backup is damaged, or the store is not empty; nothing was written then.
    """
    backup = read_manifest(folder)
    with tempfile.TemporaryDirectory(prefix="vermouth-restore-") as temporary:
        # A copy: opening and migrating writes, and the backup stays as it is, read-only perhaps.
        rows = Path(shutil.copyfile(folder / SQLITE_FILE, Path(temporary) / SQLITE_FILE))
        with _opened(rows) as source:
            migrate(source)
            with database.read(limit_s=None) as connection:
                _require_empty(connection)
            _copy_images(Blobs(str(folder / IMAGES)), blobs, _contents(rows)[0], progress)
            with source.connect() as reader, database.write() as writer:
                _require_empty(writer)  # again: a service may have started on it while images were copied
                _replace_tables(reader, writer)
                metadata.renew_identity(writer)  # older index snapshots belong to another history
                if database.is_shared:
                    _restart_ids(writer)
    return backup


@contextmanager
def _opened(path: Path, *, as_it_is: bool = False) -> Iterator[sa.Engine]:
    engine = sqlite_engine(path, as_it_is=as_it_is)
    try:
        yield engine
    finally:
        engine.dispose()


def _require_empty(connection: sa.Connection) -> None:
    if connection.execute(sa.select(galleries.c.id).limit(1)).first() is not None:
        raise BackupRefused("The store to restore into is not empty: choose an empty data folder or database.")


def _copy_images(source: Blobs, target: Blobs, named: Sequence[str], progress: Progress | None) -> None:
    for done, sha256 in enumerate(named, start=1):
        target.put(source.get(sha256))
        if progress is not None:
            progress(done, len(named))


def _copy_out(database: Database, path: Path) -> int:
    """Copy all rows into a new SQLite file; returns the `seq` they belong to."""
    with _opened(path) as target:
        migrate(target)
        with database.read(limit_s=None) as reader, target.connect() as connection:
            _require_sound(reader)
            writer = connection.execution_options(vermouth_writes=True)
            with writer.begin():
                _replace_tables(reader, writer)
                metadata.write(writer, metadata.IMAGES_HELD_UNTIL, "0")  # the hold belongs to the source
                seq = change_log.head(writer)
        with target.connect() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA journal_mode=DELETE")  # one file, without a WAL beside it
    return seq


def _require_sound(reader: sa.Connection) -> None:
    """Refuse rows that could not be restored, or would be restored as if they were sound."""
    faults = [
        *guarded("rows", row_faults(reader)),
        *guarded("vectors", damage(reader)),
        *guarded("texts", text_faults(reader)),
    ]
    if faults:
        shown = " ".join(faults[:MAX_FAULTS])
        raise BackupRefused(f"{len(faults)} faults, see `vermouth db check`. {shown}")


def _replace_tables(reader: sa.Connection, writer: sa.Connection) -> None:
    for table in reversed(schema.sorted_tables):  # what a migration wrote; children before parents
        writer.execute(sa.delete(table))
    for table in schema.sorted_tables:
        found = reader.execute(sa.select(table), execution_options={"yield_per": ROWS_AT_ONCE})
        for rows in found.mappings().partitions():
            writer.execute(sa.insert(table), [dict(row) for row in rows])


def _restart_ids(writer: sa.Connection) -> None:
    """Let PostgreSQL's sequence continue after the inserted ids."""
    last = writer.execute(sa.select(sa.func.coalesce(sa.func.max(items.c.id), 0))).scalar_one()
    sequence = sa.func.pg_get_serial_sequence("items", "id")
    writer.execute(sa.select(sa.func.setval(sequence, last + 1, False)))


def _contents(path: Path) -> tuple[list[str], int]:
    """Return the SHA-256 of all images that a backup's rows name, and the number of live items."""
    with _opened(path, as_it_is=True) as engine, engine.connect() as connection:  # it stays one file without a WAL
        count = connection.execute(sa.select(sa.func.count()).where(IS_LIVE)).scalar_one()
        return sorted(connection.execute(NAMED_IMAGES).scalars()), count


@contextmanager
def _held_images(database: Database) -> Iterator[None]:
    """Stop the garbage collection of images for a block."""
    hold = repr(time.time() + HOLD_S)
    with database.write() as connection:
        metadata.write(connection, metadata.IMAGES_HELD_UNTIL, hold)
    try:
        yield
    finally:
        with database.write() as connection:
            # A backup that began later still holds them.
            if metadata.read(connection, metadata.IMAGES_HELD_UNTIL) == hold:
                metadata.write(connection, metadata.IMAGES_HELD_UNTIL, "0")


def _write_manifest(folder: Path, backup: BackedUp) -> None:
    manifest = {
        "format": FORMAT,
        "seq": backup.seq,
        "items": backup.items,
        "pictures": backup.images,  # the name in format 1
        "sha256": file_sha256(folder / SQLITE_FILE),
    }
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def read_manifest(folder: Path) -> BackedUp:
    """Return what a backup holds. Raises BackupRefused where there is none, or it is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        is_sound = manifest["format"] == FORMAT and manifest["sha256"] == file_sha256(folder / SQLITE_FILE)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise BackupRefused(f"{folder} holds no backup.") from err
    if not is_sound:
        raise BackupRefused(f"The backup in {folder} is damaged.")
    return BackedUp(seq=int(manifest["seq"]), items=int(manifest["items"]), images=int(manifest["pictures"]))
