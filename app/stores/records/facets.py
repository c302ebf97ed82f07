"""Values of a metadata field with the number of items that have each, counted by the database."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from app.stores.filters import Scalar
from app.stores.sql.tables import IS_LIVE, items


@dataclass(frozen=True, slots=True, kw_only=True)
class Facet:
    """One value and how many items have it, alone or in a list."""

    value: Scalar
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facets:
    """The most frequent values, and how many different ones there are."""

    total: int
    facets: Sequence[Facet]


def count_facets(connection: sa.Connection, gallery_id: int, field: str, limit: int) -> Facets:
    """Return the `limit` most frequent values of a field, equal counts by their text.

    The elements of a list count singly; objects and lists of lists have no value. `1` and `1.0` are one value.
    """
    count = _postgresql_values if connection.dialect.name == "postgresql" else _sqlite_values
    values = count(gallery_id, field).subquery()
    n_items = sa.func.count(sa.distinct(values.c.item)).label("n_items")
    query = (
        sa.select(values.c.kind, sa.func.min(values.c.value).label("value"), n_items, sa.func.count().over().label("n"))
        .group_by(values.c.kind, values.c.key)
        .order_by(n_items.desc(), sa.func.min(values.c.text))
        .limit(limit)
    )
    rows = connection.execute(query).all()
    facets = [Facet(value=_scalar(row.kind, row.value), count=row.n_items) for row in rows]
    return Facets(total=rows[0].n if rows else 0, facets=facets)


def _sqlite_values(gallery_id: int, field: str) -> sa.CompoundSelect[*tuple[Any, ...]]:
    member = sa.func.json_each(items.c.metadata).table_valued("key", "value", "type").alias("member")
    # Other members are no JSON, and SQLite may call json_each before it looks at their type.
    array = sa.case((member.c.type == "array", member.c.value), else_="[]")
    element = sa.func.json_each(array).table_valued("key", "value", "type").alias("element")

    def values(one: Any, source: Any) -> sa.Select[*tuple[Any, ...]]:
        is_named = one.c.type.in_(("true", "false", "null"))
        kind = sa.case((one.c.type.in_(("integer", "real")), "number"), else_=one.c.type)
        return (
            sa.select(
                items.c.id.label("item"),
                kind.label("kind"),
                one.c.value.label("key"),
                one.c.value.label("value"),
                sa.case((is_named, one.c.type), else_=sa.cast(one.c.value, sa.Text)).label("text"),
            )
            .select_from(source)
            .where(items.c.gallery_id == gallery_id, IS_LIVE, member.c.key == field)
            .where(one.c.type.not_in(("array", "object")))
        )

    alone = sa.join(items, member, sa.true())
    return sa.union_all(values(member, alone), values(element, sa.join(alone, element, sa.true())))


def _postgresql_values(gallery_id: int, field: str) -> sa.Select[*tuple[Any, ...]]:
    member = sa.cast(items.c.metadata, JSONB).op("->", return_type=JSONB)(sa.literal(field, sa.Text))
    listed = sa.case((sa.func.jsonb_typeof(member) == "array", member), else_=sa.func.jsonb_build_array(member))
    element = sa.func.jsonb_array_elements(listed).table_valued(sa.column("value", JSONB)).alias("element")
    value, kind = element.c.value, sa.func.jsonb_typeof(element.c.value)
    text = sa.collate(sa.func.coalesce(value.op("#>>", return_type=sa.Text)(sa.text("'{}'")), "null"), "C")
    return (
        sa.select(
            items.c.id.label("item"), kind.label("kind"), value.label("key"), text.label("value"), text.label("text")
        )
        .select_from(sa.join(items, element, sa.true()))
        .where(items.c.gallery_id == gallery_id, IS_LIVE, sa.func.jsonb_exists(sa.cast(items.c.metadata, JSONB), field))
        .where(kind.not_in(("array", "object")))
    )


def _scalar(kind: str, value: Any) -> Scalar:
    """The value of a row; PostgreSQL gives numbers as text, SQLite names booleans by their type."""
    if kind == "null":
        return None
    if kind in ("true", "false", "boolean"):
        return kind == "true" or value == "true"
    if kind == "number" and isinstance(value, str):
        return int(value) if value.lstrip("-").isdigit() else float(value)
    found: Scalar = value
    return found
