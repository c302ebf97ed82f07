"""Collecting pictures that no row names any more."""

import time
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager

import sqlalchemy as sa

from app.stores.blobs import Blobs
from app.stores.sql import metadata as facts
from app.stores.sql.database import Database
from app.stores.sql.failpoints import reached
from app.stores.sql.tables import items, supports

BLOBS_AT_ONCE = 500
BLOBS_A_TURN = 16
"""Most pictures deleted in one of the writer's turns: others wait for no more."""


@contextmanager
def stored_pictures(database: Database, blobs: Blobs, pictures: Iterable[bytes]) -> Iterator[list[str]]:
    """Stores pictures for a block that names them by their SHA-256; where it fails they are collected again.

    Raises:
        DiskFull: no space left for one of them.
    """
    digests: list[str] = []
    try:
        digests.extend(blobs.put(data) for data in pictures)
        yield digests
    except BaseException:
        collect_later(database, blobs, set(digests))
        raise


def collect_later(database: Database, blobs: Blobs, candidates: Set[str]) -> None:
    """As `delete_unreferenced`, but after the caller's answer; what fails is logged and left to a vacuum."""
    ordered = sorted(candidates)
    for start in range(0, len(ordered), BLOBS_AT_ONCE):
        database.later(delete_unreferenced, database, blobs, set(ordered[start : start + BLOBS_AT_ONCE]))


def delete_unreferenced(database: Database, blobs: Blobs, candidates: Set[str]) -> int:
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
        reached("blobs.collected")
    return count


def named(connection: sa.Connection, digests: list[str]) -> set[str]:
    """Those of some SHA-256 that a live item or a support names."""
    live = sa.select(items.c.sha256).where(items.c.sha256.in_(digests), items.c.deleted_seq.is_(None))
    kept = sa.select(supports.c.sha256).where(supports.c.sha256.in_(digests))
    return set(connection.execute(live.union(kept)).scalars())


def are_held(connection: sa.Connection) -> bool:
    """Whether a backup is copying pictures just now."""
    return float(facts.read(connection, facts.PICTURES_HELD_UNTIL) or 0) > time.time()


def _unnamed(database: Database, digests: list[str]) -> list[str]:
    """A first look that keeps no writer waiting."""
    found: list[str] = []
    for start in range(0, len(digests), BLOBS_AT_ONCE):
        part = digests[start : start + BLOBS_AT_ONCE]
        with database.read(limit_s=None) as connection:
            kept = named(connection, part)
        found.extend(one for one in part if one not in kept)
    return found
