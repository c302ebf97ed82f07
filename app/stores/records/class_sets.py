"""Class sets: named lists of classes whose text embeddings are computed once."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.errors import Damaged, NotFound, PreconditionFailed
from app.stores.sql import change_log, metadata
from app.stores.sql.checksums import sealed_rows, verified
from app.stores.sql.database import Database, failpoint
from app.stores.sql.tables import class_set_vectors, class_sets

_Row = sa.Row[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPrompt:
    """A class: its name, other words for it, and templates with one `{}` each (none: the bundle's)."""

    name: str
    synonyms: Sequence[str] = ()
    templates: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSet:
    """A stored class set; times in seconds since 1970."""

    name: str
    version: int
    classes: Sequence[ClassPrompt]
    created_at: float
    updated_at: float


class ClassSets:
    """All class sets; every method blocks, call them through `Database.run`.

    Args:
        dimension: D of the bundle's embeddings.
        fingerprint: of the bundle.
    """

    def __init__(self, database: Database, *, dimension: int, fingerprint: str) -> None:
        self._database = database
        self._dimension = dimension
        self._fingerprint = fingerprint

    def put(
        self,
        name: str,
        classes: Sequence[ClassPrompt],
        vectors: NDArray[np.float32],
        *,
        if_match: Sequence[int] | None = None,
    ) -> tuple[int, ClassSet, bool]:
        """Create or replace a class set with its embeddings, [N, D] float32, unit rows.

        Returns the write's `seq`, the class set, and whether it is new.

        Raises:
            FingerprintMismatch: another bundle's embeddings are active.
            PreconditionFailed: its version is none of `if_match`.
        """
        now = time.time()
        with self._database.write() as connection:
            metadata.require_fingerprint(connection, self._fingerprint)
            old = _row(connection, name)
            _check_version(old, if_match)
            values = {"version": 1, "classes": [asdict(one) for one in classes], "updated_at": now}
            if old is None:
                connection.execute(sa.insert(class_sets), {**values, "name": name, "created_at": now})
            else:
                values["version"] = old.version + 1  # the ETag of the next `If-Match`
                connection.execute(sa.update(class_sets).where(class_sets.c.name == name).values(values))
                # Of every bundle: they belong to the old classes.
                connection.execute(sa.delete(class_set_vectors).where(class_set_vectors.c.name == name))
            embedded = {"name": name, "fingerprint": self._fingerprint, **sealed_rows(name, vectors)}
            connection.execute(sa.insert(class_set_vectors), embedded)
            seq = change_log.append(connection, "class_set.put", name)
            stored = class_set_of(_required(connection, name))
            failpoint("rows.written")
        failpoint("rows.committed")
        return seq, stored, old is None

    def get(self, name: str) -> ClassSet:
        """Return one class set. Raises NotFound."""
        with self._database.read() as connection:
            return class_set_of(_required(connection, name))

    def embedded(self, name: str) -> tuple[ClassSet, NDArray[np.float32]]:
        """Return one class set and its embeddings, [N, D] float32. Raises NotFound, FingerprintMismatch, Damaged."""
        with self._database.read() as connection:
            row = _required(connection, name)
            query = sa.select(class_set_vectors.c.vectors, class_set_vectors.c.checksum).where(
                class_set_vectors.c.name == name, class_set_vectors.c.fingerprint == self._fingerprint
            )
            stored = connection.execute(query).one_or_none()
        if stored is None:  # embedded by another bundle
            raise metadata.mismatch()
        vectors = verified(name, stored.vectors, stored.checksum)
        if vectors is None:
            raise Damaged(f"The embeddings of class set {name!r} are damaged: run `vermouth db repair`.")
        return class_set_of(row), vectors.reshape(-1, self._dimension)

    def all(self) -> Sequence[ClassSet]:
        """Return every class set, by name."""
        with self._database.read() as connection:
            return [class_set_of(row) for row in connection.execute(sa.select(class_sets).order_by(class_sets.c.name))]

    def delete(self, name: str, *, if_match: Sequence[int] | None = None) -> int:
        """Delete one. Returns the write's `seq`. Raises NotFound, PreconditionFailed."""
        with self._database.write() as connection:
            _check_version(_required(connection, name), if_match)
            connection.execute(sa.delete(class_set_vectors).where(class_set_vectors.c.name == name))
            connection.execute(sa.delete(class_sets).where(class_sets.c.name == name))
            return change_log.append(connection, "class_set.delete", name)


def class_set_of(row: _Row) -> ClassSet:
    """Return the class set of a row of its table."""
    return ClassSet(**{**row._mapping, "classes": [ClassPrompt(**one) for one in row.classes]})


def _row(connection: sa.Connection, name: str) -> _Row | None:
    return connection.execute(sa.select(class_sets).where(class_sets.c.name == name)).one_or_none()


def _required(connection: sa.Connection, name: str) -> _Row:
    row = _row(connection, name)
    if row is None:
        raise NotFound(f"There is no class set {name!r}.")
    return row


def _check_version(row: _Row | None, if_match: Sequence[int] | None) -> None:
    if if_match is not None and (row is None or row.version not in if_match):
        raise PreconditionFailed("The class set is at another version.")
