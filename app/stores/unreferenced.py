"""Collecting pictures that no row names any more."""

from collections.abc import Set

import sqlalchemy as sa

from app.stores.blobs import Blobs
from app.stores.database import Database
from app.stores.tables import items, supports


def delete_unreferenced(database: Database, blobs: Blobs, candidates: Set[str]) -> None:
    """Delete those of `candidates` (SHA-256) that neither a live item nor a support names.

    Call it with the write lock held, so that no writer is about to name one of them.
    """
    if not candidates:
        return
    named: set[str] = set()
    ordered = sorted(candidates)
    with database.read() as connection:
        for start in range(0, len(ordered), 500):
            part = ordered[start : start + 500]
            live = sa.select(items.c.sha256).where(items.c.sha256.in_(part), items.c.deleted_seq.is_(None))
            kept = sa.select(supports.c.sha256).where(supports.c.sha256.in_(part))
            named.update(connection.execute(live.union(kept)).scalars())
    for sha256 in candidates - named:
        blobs.delete(sha256)
