"""Filters over metadata: a small tree, checked when it is parsed, its meaning, and the same in SQL.

Types are strict: `true`, `1` and `"1"` are three values, while `1` and `1.0` are one number, exact to 64 bits. A
missing field matches only `exists: false` and `ne`. `lt lte gt gte` compare numbers with numbers and strings with
strings, by code points. `any` and `all` test the elements of a list.
"""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from app.domain import MAX_INTEGER, MIN_INTEGER, exact_number
from app.errors import FieldError, Invalid

Condition = sa.ColumnElement[bool]
Column = sa.ColumnElement[Any]
Scalar = str | int | float | bool | None
Op = Literal["eq", "ne", "in", "lt", "lte", "gt", "gte", "any", "all", "exists"]

MAX_DEPTH = 8
MAX_LEAVES = 64
MAX_VALUES = 256
MAX_ALL_VALUES = 2048  # over all lists of a filter: SQLite takes 32,766 parameters per statement
MAX_TEXT = 1024
OPS: tuple[Op, ...] = get_args(Op)
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One comparison: `values` holds one scalar, or those of `in`, `any`, `all`; a boolean for `exists`."""

    field: str
    op: Op
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """All parts hold (`is_and`), or at least one."""

    is_and: bool
    parts: tuple["Filter", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Not:
    """The part does not hold."""

    part: "Filter"


Filter = Leaf | Both | Not


def parse_filter(value: object) -> Filter:
    """Parse a JSON value into a filter.

    Raises:
        Invalid: it is none, is deeper than 8, has more than 64 comparisons or more than 2,048 values.
    """
    return _Parser().parse(value, "filter", 1)


def matches(found: Filter, metadata: Mapping[str, object]) -> bool:
    """Whether an item's metadata passes; the meaning that the SQL conditions must agree with."""
    if isinstance(found, Both):
        return (all if found.is_and else any)(matches(part, metadata) for part in found.parts)
    if isinstance(found, Not):
        return not matches(found.part, metadata)
    if found.op == "exists":
        return (found.field in metadata) is found.values[0]
    if found.field not in metadata:
        return found.op == "ne"  # a missing field equals nothing
    value = metadata[found.field]
    if found.op == "ne":
        return not is_equal(value, found.values[0])
    if found.op in ("eq", "in"):
        return any(is_equal(value, wanted) for wanted in found.values)
    if found.op in ("any", "all"):
        if not isinstance(value, (list, tuple)):
            return False
        present = (any(is_equal(element, wanted) for element in value) for wanted in found.values)
        return any(present) if found.op == "any" else all(present)
    (wanted,) = found.values
    is_comparable = (isinstance(value, str) and isinstance(wanted, str)) or (is_number(value) and is_number(wanted))
    return is_comparable and bool(COMPARE[found.op](value, wanted))


def is_number(value: object) -> bool:
    """Whether a JSON value is a number; booleans are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_equal(one: object, other: object) -> bool:
    """Whether two JSON scalars are of one type and equal."""
    if is_number(one) and is_number(other):
        return one == other
    # Types first: in Python True == 1.
    return type(one) is type(other) and isinstance(one, (str, bool, type(None))) and one == other


def filter_condition(found: Filter, metadata: Column, dialect: str) -> Condition:
    """Return a condition over rows whose `metadata` column is JSON; it is never null.

    Args:
        dialect: `sqlite` or `postgresql`.
    """
    leaf = _postgresql_leaf if dialect == "postgresql" else _sqlite_leaf
    return _tree(found, lambda one: leaf(one, metadata))


class _Parser:
    """Parses one filter and counts its comparisons and values on the way, so that a large one ends early."""

    def __init__(self) -> None:
        self._leaves = 0
        self._values = 0

    def parse(self, value: object, path: str, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise _invalid(path, f"is deeper than {MAX_DEPTH}")
        if not isinstance(value, Mapping) or not value:
            raise _invalid(path, "must be an object that is not empty")
        # The long form; `op` or `field` alone is the name of a metadata field.
        if "op" in value and "field" in value:
            if value.keys() != {"field", "op", "value"} or not isinstance(value["field"], str):
                raise _invalid(path, "with `op` must have exactly field, op and value")
            return self._leaf(value["field"], str(value["op"]), value["value"], path)
        if len(value) > 1:  # several fields: all must pass
            parts = [self.parse({name: part}, path, depth) for name, part in value.items()]
            return Both(is_and=True, parts=tuple(parts))
        ((name, content),) = value.items()
        if name in ("and", "or"):
            if not isinstance(content, Sequence) or isinstance(content, str) or not content:
                raise _invalid(f"{path}.{name}", "must be a list that is not empty")
            inner = [self.parse(part, f"{path}.{name}[{at}]", depth + 1) for at, part in enumerate(content)]
            return Both(is_and=name == "and", parts=tuple(inner))
        if name == "not":
            return Not(part=self.parse(content, f"{path}.not", depth + 1))
        return self._field(str(name), content, path)

    def _field(self, field: str, content: object, path: str) -> Filter:
        if not isinstance(content, Mapping):
            return self._leaf(field, "eq", content, path)
        if not content:
            raise _invalid(f"{path}.{field}", "names no comparison")
        leaves = [self._leaf(field, str(op), value, path) for op, value in content.items()]
        return leaves[0] if len(leaves) == 1 else Both(is_and=True, parts=tuple(leaves))

    def _leaf(self, field: str, op: str, value: object, path: str) -> Leaf:
        leaf = _parse_leaf(field, op, value, path)
        self._leaves += 1
        self._values += len(leaf.values)
        if self._leaves > MAX_LEAVES:
            raise _invalid("filter", f"has more than {MAX_LEAVES} comparisons")
        if self._values > MAX_ALL_VALUES:
            raise _invalid("filter", f"has more than {MAX_ALL_VALUES} values")
        return leaf


def _parse_leaf(field: str, op: str, value: object, path: str) -> Leaf:
    where = f"{path}.{field}.{op}"
    known = next((name for name in OPS if name == op), None)
    if known is None:
        raise _invalid(where, f"is no comparison; use one of {' '.join(OPS)}")
    _check_text(field, where)
    if known == "exists":
        if not isinstance(value, bool):
            raise _invalid(where, "must be true or false")
        return Leaf(field=field, op=known, values=(value,))
    if known in ("in", "any", "all"):
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_VALUES:
            raise _invalid(where, f"must be a list of 1 to {MAX_VALUES} values")
        return Leaf(field=field, op=known, values=tuple(_scalar(one, where) for one in value))
    scalar = _scalar(value, where)
    if known in COMPARE and not (isinstance(scalar, str) or is_number(scalar)):
        raise _invalid(where, "must compare with a number or a string")
    return Leaf(field=field, op=known, values=(scalar,))


def _scalar(value: object, where: str) -> Scalar:
    if isinstance(value, str):
        _check_text(value, where)
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not MIN_INTEGER <= value <= MAX_INTEGER:
            raise _invalid(where, "holds an integer beyond 64 bits")
        return value
    if isinstance(value, float) and abs(value) < float("inf"):  # false for NaN too
        return exact_number(value)
    raise _invalid(where, "must be a string, a number, true, false or null")


def _check_text(text: str, where: str) -> None:
    # Neither database stores NUL or half a surrogate pair in text.
    if len(text) > MAX_TEXT or "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _invalid(where, f"holds a text of more than {MAX_TEXT} characters, a NUL or half a surrogate pair")


def _invalid(field: str, message: str) -> Invalid:
    name = field[:200].encode("utf-8", "replace").decode()  # a response must be valid UTF-8
    return Invalid(f"{name} {message}.", errors=[FieldError(field=name, message=message)])


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
