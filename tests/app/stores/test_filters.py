"""Filters mean the same in Python, SQLite and PostgreSQL."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import MAX_INTEGER, MIN_INTEGER, exact_metadata
from app.errors import Invalid
from app.stores.filters import filter_condition, matches, parse_filter
from app.stores.sql.database import Database, open_database
from tests.app.postgres import PostgresServer

EXAMPLES = int(os.environ.get("FILTER_EXAMPLES", "200"))
FIELDS = st.sampled_from(["a", "b", "and", "not", "field", "op", "", 'q"uo\\te', "é.x", "$", "a[0]", "日本"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.integers(MIN_INTEGER, MAX_INTEGER),
    st.integers(-(2**53), 2**53),
    st.floats(2**53, 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        [
            0.0,
            -0.0,
            1.0,
            0.1,
            1e23,
            1e-7,
            5e-324,
            1.7976931348623157e308,
            9007199254740992.0,
            1.2345678901234567e18,
            1234567890123456768,
            1234567890123456700,
            2.0**63,
            MAX_INTEGER,
            MIN_INTEGER,
            2**53 + 1,
        ]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.sampled_from(["1", "true", "a", "B", "é"]))
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(FIELDS, SCALARS, max_size=2))
METADATA = st.dictionaries(FIELDS, VALUES, max_size=5).map(exact_metadata)
ORDERED = st.one_of(NUMBERS, TEXTS)


def named(field: str, op: str, value: object) -> dict[str, object]:
    return {"field": field, "op": op, "value": value}


LEAVES = st.one_of(
    st.builds(named, FIELDS, st.sampled_from(["eq", "ne"]), SCALARS),
    st.builds(named, FIELDS, st.sampled_from(["lt", "lte", "gt", "gte"]), ORDERED),
    st.builds(named, FIELDS, st.sampled_from(["in", "any", "all"]), st.lists(SCALARS, min_size=1, max_size=3)),
    st.builds(named, FIELDS, st.just("exists"), st.booleans()),
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=5,
)
documents = sa.Table("documents", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("metadata", sa.JSON))


@pytest.fixture(scope="module")
def databases(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Database]]:
    folder: Path = tmp_path_factory.mktemp("filters")
    url = postgres.new_database()
    opened = [open_database(data_dir=folder / "one"), open_database(data_dir=folder / "two", url=url)]
    for database in opened:
        documents.create(database.engine)
    yield opened
    for database in opened:
        database.close()
    postgres.drop(url)


@settings(max_examples=EXAMPLES, deadline=None)
@given(found=FILTERS, stored=st.lists(METADATA, min_size=1, max_size=6))
def test_python_sqlite_and_postgresql_agree(
    databases: list[Database], found: dict[str, Any], stored: list[dict[str, Any]]
) -> None:
    # As the service sees them: read from JSON.
    where = parse_filter(json.loads(json.dumps(found)))
    expected = [at for at, metadata in enumerate(stored) if matches(where, json.loads(json.dumps(metadata)))]
    for database in databases:
        with database.write() as connection:
            connection.execute(sa.delete(documents))
            connection.execute(sa.insert(documents), [{"id": at, "metadata": one} for at, one in enumerate(stored)])
            condition = filter_condition(where, documents.c.metadata, connection.dialect.name)
            query = sa.select(documents.c.id).where(condition).order_by(documents.c.id)
            assert list(connection.execute(query).scalars()) == expected, connection.dialect.name


def test_the_largest_filter_runs_on_both_databases(databases: list[Database]) -> None:
    values = [f"{n}" * 10 if n % 2 else n + 0.5 for n in range(256)]
    where = parse_filter({"or": [{f"f{at}": {op: values}} for at in range(2) for op in ("in", "any", "all")]})
    for database in databases:
        with database.write() as connection:
            connection.execute(sa.delete(documents))
            connection.execute(sa.insert(documents), [{"id": 1, "metadata": {"f1": 254.5}}])
            condition = filter_condition(where, documents.c.metadata, connection.dialect.name)
            assert list(connection.execute(sa.select(documents.c.id).where(condition)).scalars()) == [1]


ITEM: dict[str, object] = {"n": 1, "t": "x", "yes": True, "tags": ["a", 2], "null": None}


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ({"n": 1}, True), ({"n": 1.0}, True), ({"n": True}, False), ({"n": "1"}, False),
        ({"yes": True}, True), ({"yes": 1}, False), ({"null": None}, True), ({"gone": None}, False),
        ({"n": {"gte": 1, "lt": 2}}, True), ({"n": {"gt": "0"}}, False), ({"t": {"gt": "w"}}, True),
        ({"tags": {"any": ["b", "a"]}}, True), ({"tags": {"all": ["a", 2]}}, True),
        ({"tags": {"all": ["a", "b"]}}, False),
        ({"t": {"any": ["x"]}}, False), ({"t": {"in": ["y", "x"]}}, True), ({"gone": {"ne": 1}}, True),
        ({"gone": {"exists": False}}, True), ({"n": {"exists": False}}, False), ({"not": {"n": 1}}, False),
        ({"or": [{"n": 2}, {"t": "x"}]}, True), ({"n": 1, "t": "y"}, False),
        ({"field": "n", "op": "eq", "value": 1}, True), ({"tags": {"eq": "a"}}, False),
    ],
)  # fmt: skip
def test_meaning(where: dict[str, object], passes: bool) -> None:
    assert matches(parse_filter(where), ITEM) is passes


DEEP: dict[str, Any] = {"a": 1}
for _ in range(8):
    DEEP = {"not": DEEP}


def test_a_filter_of_a_megabyte_is_refused_before_all_of_it_is_read() -> None:
    leaf = {"x" * 32: 1}
    where = json.loads(json.dumps({"and": [{"or": [{"and": [leaf] * 60}] * 60}] * 7}))
    assert len(json.dumps(where)) > 1_000_000
    times_s = []
    for _ in range(3):
        started_s = time.thread_time()
        with pytest.raises(Invalid, match="more than 64 comparisons"):
            parse_filter(where)
        times_s.append(time.thread_time() - started_s)
    assert min(times_s) < 0.01


@pytest.mark.parametrize(
    "where",
    [
        None, [], {}, "x", {"a": {}}, {"a": {"like": 1}}, {"a": {"lt": True}}, {"a": {"lt": None}}, {"a": {"in": []}},
        {"a": {"in": "x"}}, {"a": {"exists": 1}}, {"and": []}, {"or": {"a": 1}}, {"not": []}, {"a": [1]},
        {"or": [{"a": {"in": list(range(256))}}] * 9},
        {"a": 2**63}, {"a": -(2**63) - 1}, {"a": float("nan")}, {"a": float("inf")}, {"a": "\0"}, {"a": "x" * 1025},
        {"a\0": 1}, DEEP,
        {"and": [{"a": n} for n in range(65)]}, {"field": "a", "op": "eq"}, {"field": 1, "op": "eq", "value": 1},
        {"field": "a", "op": "eq", "value": 1, "more": 1}, {"a": {"eq": {"b": 1}}}, {"a": "\ud800"},
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused(where: object) -> None:
    with pytest.raises(Invalid):
        parse_filter(where)
