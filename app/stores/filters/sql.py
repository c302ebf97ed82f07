"""Filters in SQL, for SQLite and PostgreSQL; `tree.matches` defines what they mean."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import JSONB

from app.errors import DeadlineExceeded
from app.runtime.lru import ByteLru
from app.stores.filters.tree import COMPARE, Both, Filter, Leaf, Not, Scalar, is_number
from app.stores.sql import change_log
from app.stores.sql.database import Database
from app.stores.sql.engines import READ_LIMIT_S
from app.stores.sql.tables import IS_LIVE, changes, items

MAX_BYTES = 64 << 20
MAX_CHANGED = 2048  # after more changes than this all rows are selected again
_OVERHEAD_BYTES = 512  # of a cached answer besides its rows

Condition = sa.ColumnElement[bool]
Column = sa.ColumnElement[Any]
Ids = NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class _Answer:
    """The rows that passed at `seq`, ascending; `lock` is held while they are selected."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    seq: int = 0
    ids: Ids | None = None


class FilteredRows:
    """Thread-safe LRU cache of the rows that pass a filter, by gallery and filter.

    Only SQL evaluates filters: an entry is SQL's answer at a `seq`, and rows that changed since are queried again.
    """

    def __init__(self, database: Database, *, max_bytes: int = MAX_BYTES) -> None:
        self._database = database
        self._answers = ByteLru[tuple[int, bytes], _Answer](max_bytes)
        self._lock = threading.Lock()

    def passing(self, gallery_id: int, where: Filter) -> Ids:
        """Return rows of a gallery's live items that pass, ascending; rows deleted since may be among them.

        Concurrent calls for the same filter share one query. Raises as `Database.read`.
        """
        # Hashed by its text: in Python `1`, `1.0` and `True` are one key.
        key = (gallery_id, hashlib.sha256(repr(where).encode()).digest())
        with self._lock:
            answer = self._answers.get(key)
            if answer is None:
                answer = _Answer()
                self._answers.put(key, answer, _OVERHEAD_BYTES)
        with _acquired(answer.lock), self._database.read() as connection:
            head = change_log.head(connection)
            changed = None if answer.ids is None else _changed_since(connection, answer.seq)
            if answer.ids is None or changed is None:
                ids = _select(connection, gallery_id, where, None)
            elif len(changed):
                again = _select(connection, gallery_id, where, changed)
                ids = np.union1d(np.setdiff1d(answer.ids, changed, assume_unique=True), again)
            else:
                ids = answer.ids
            answer.ids, answer.seq = ids, head
        self._answers.put(key, answer, ids.nbytes + _OVERHEAD_BYTES)
        return ids


def filter_condition(found: Filter, metadata: Column, dialect: str) -> Condition:
    """Return a condition over rows whose `metadata` column is JSON; it is never null.

    Args:
        dialect: `sqlite` or `postgresql`.
    """
    leaf = _postgresql_leaf if dialect == "postgresql" else _sqlite_leaf
    return _tree(found, lambda one: leaf(one, metadata))


@contextlib.contextmanager
def _acquired(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock. Raises DeadlineExceeded if its holder takes longer than a read may."""
    if not lock.acquire(timeout=READ_LIMIT_S):
        raise DeadlineExceeded("The query took longer than the store allows.")
    try:
        yield
    finally:
        lock.release()


def _changed_since(connection: sa.Connection, seq: int) -> Ids | None:
    """Return rows written since a `seq`, ascending; None if they are too many or the log does not name them."""
    if change_log.vacuumed(connection) > seq:
        return None
    about_items = sa.or_(changes.c.item_id.is_not(None), changes.c.kind == "items.delete")
    query = sa.select(changes.c.item_id).where(changes.c.seq > seq, about_items)
    rows = connection.execute(query.limit(MAX_CHANGED + 1)).scalars().all()
    # A bulk delete is one change without a row.
    return None if None in rows or len(rows) > MAX_CHANGED else np.unique(np.array(rows, np.int64))


def _select(connection: sa.Connection, gallery_id: int, where: Filter, among: Ids | None) -> Ids:
    """Return rows of the live items that pass, ascending: of all, or of those in `among`."""
    query = sa.select(items.c.id).where(items.c.gallery_id == gallery_id, IS_LIVE)
    query = query.where(filter_condition(where, items.c.metadata, connection.dialect.name))
    if among is not None:
        query = query.where(items.c.id.in_(among.tolist()))
    return np.array(connection.execute(query.order_by(items.c.id)).scalars().all(), np.int64)


def _tree(found: Filter, leaf: Callable[[Leaf], Condition]) -> Condition:
    if isinstance(found, Both):
        join = sa.and_ if found.is_and else sa.or_
        return join(*(_tree(part, leaf) for part in found.parts)).self_group()
    if isinstance(found, Not):
        return sa.not_(_tree(found.part, leaf))
    # Negated outside the leaf, so that a missing field counts as not equal.
    if found.op == "ne":
        return sa.not_(leaf(Leaf(field=found.field, op="eq", values=found.values)))
    if found.op == "exists" and found.values[0] is False:
        return sa.not_(leaf(Leaf(field=found.field, op="exists", values=(True,))))
    return leaf(found)


def _sqlite_leaf(leaf: Leaf, metadata: Column) -> Condition:
    # EXISTS over the object's members: a JSON path would need quoting, a key needs none.
    member = sa.func.json_each(metadata).table_valued("key", "value", "type").alias()
    conditions: list[Condition] = [member.c.key == leaf.field]
    if leaf.op in ("eq", "in"):
        conditions.append(sa.or_(*(_sqlite_equal(member, value) for value in leaf.values)))
    elif leaf.op in ("any", "all"):
        inner = [_sqlite_element(member, wanted) for wanted in leaf.values]
        conditions += [member.c.type == "array", (sa.or_ if leaf.op == "any" else sa.and_)(*inner)]
    elif leaf.op != "exists":
        (wanted,) = leaf.values
        conditions += [
            member.c.type.in_(_sqlite_types(wanted)),
            COMPARE[leaf.op](member.c.value, _sqlite_value(wanted)),
        ]
    return sa.exists(sa.select(sa.literal(1)).select_from(member).where(*conditions))


def _sqlite_element(member: sa.FromClause, wanted: Scalar) -> Condition:
    """Return the condition that the list in `member` holds the value."""
    # CASE, because SQLite may evaluate json_each before the type check, and other members are not JSON.
    array = sa.case((member.c.type == "array", member.c.value), else_="[]")
    element = sa.func.json_each(array).table_valued("key", "value", "type").alias()
    return sa.exists(sa.select(sa.literal(1)).select_from(element).where(_sqlite_equal(element, wanted)))


def _sqlite_equal(member: sa.FromClause, value: Scalar) -> Condition:
    if value is None:
        return member.c.type == "null"
    if isinstance(value, bool):
        return member.c.type == ("true" if value else "false")
    return sa.and_(member.c.type.in_(_sqlite_types(value)), member.c.value == _sqlite_value(value))


def _sqlite_types(value: Scalar) -> list[str]:
    return ["integer", "real"] if is_number(value) else ["text"]


def _sqlite_value(value: Scalar) -> Column:
    # Parsed by SQLite, as the numbers in the metadata are: the same text is the same number.
    return sa.func.json_extract(json.dumps(value), "$") if is_number(value) else sa.literal(value, sa.Text)


def _postgresql_leaf(leaf: Leaf, metadata: Column) -> Condition:
    document = sa.cast(metadata, JSONB)
    member = document.op("->", return_type=JSONB)(sa.literal(leaf.field, sa.Text))
    if leaf.op == "exists":
        return sa.func.jsonb_exists(document, leaf.field)
    if leaf.op in ("eq", "in"):
        # NULL where the field is missing: `not` would turn that into NULL, not into true.
        return sa.func.coalesce(sa.or_(*(member == _jsonb(value) for value in leaf.values)), sa.false())
    if leaf.op in ("any", "all"):
        inner = [member.op("@>", return_type=sa.Boolean)(_jsonb([value])) for value in leaf.values]
        holds = (sa.or_ if leaf.op == "any" else sa.and_)(*inner)
        return sa.case((sa.func.jsonb_typeof(member) == "array", holds), else_=sa.false())
    (wanted,) = leaf.values
    text = document.op("->>", return_type=sa.Text)(sa.literal(leaf.field, sa.Text))
    if is_number(wanted):
        compared = COMPARE[leaf.op](sa.cast(text, sa.Numeric), sa.cast(sa.literal(json.dumps(wanted)), sa.Numeric))
        kind = "number"
    else:
        compared = COMPARE[leaf.op](sa.collate(text, "C"), sa.literal(wanted, sa.Text))  # "C": by code points
        kind = "string"
    # CASE guards the cast: PostgreSQL may evaluate both sides of AND.
    return sa.case((sa.func.jsonb_typeof(member) == kind, compared), else_=sa.false())


def _jsonb(value: object) -> Column:
    return sa.cast(sa.literal(json.dumps(value, ensure_ascii=False), sa.Text), JSONB)
