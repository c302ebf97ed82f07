"""Counts of metadata values are the same in Python, SQLite and PostgreSQL."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.stores.records.facets import count_facets
from app.stores.sql.database import Database, open_database
from app.stores.sql.tables import galleries, items
from tests.app.postgres import PostgresServer

METADATA: list[dict[str, object]] = [
    {"kind": "icon", "n": 1, "tags": ["a", "b", "a"], "and": True, 'q"uo\\te': "x"},
    {"kind": "icon", "n": 1.0, "tags": ["b"], "and": 1},
    {"kind": "photo", "n": "1", "tags": [], "and": "true"},
    {"kind": None, "n": True, "tags": "b", "and": [True, 1, None]},
    {"kind": {"deep": 1}, "n": [1, [1], {"n": 1}], "$.kind": "icon"},
    {"n": 2**63 - 1}, {"n": -(2**63)}, {"n": 0.5}, {"n": "日本"}, {"n": ""},
]  # fmt: skip
FIELDS = ["kind", "n", "tags", "and", 'q"uo\\te', "$.kind", "none"]


@pytest.fixture(scope="module")
def databases(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Database]]:
    folder: Path = tmp_path_factory.mktemp("facets")
    url = postgres.new_database()
    opened = [open_database(data_dir=folder / "one"), open_database(data_dir=folder / "two", url=url)]
    for database in opened:
        with database.write() as connection:
            for key in (1, 2):
                row = {"id": key, "name": f"g{key}", "description": "", "created_at": time.time()}
                connection.execute(sa.insert(galleries), row)
            stored = {"sha256": "", "media_type": "", "width": 1, "height": 1, "created_at": 0.0, "added_seq": 1}
            rows = [
                {**stored, "gallery_id": 1, "external_id": f"i{at}", "metadata": one, "seq": at, "deleted_seq": None}
                for at, one in enumerate(METADATA)
            ]
            rows.append({**rows[0], "external_id": "deleted", "deleted_seq": 1})
            rows.append({**rows[0], "gallery_id": 2})
            connection.execute(sa.insert(items), rows)
    yield opened
    for database in opened:
        database.close()
    postgres.drop(url)


def expected(field: str) -> Counter[str]:
    """Items by the JSON of each value; equal numbers are one."""
    found = Counter[str]()
    for metadata in METADATA:
        if field in metadata:
            value = metadata[field]
            values = value if isinstance(value, list) else [value]
            plain = [int(one) if isinstance(one, float) and one.is_integer() else one for one in values]
            found.update({json.dumps(one) for one in plain if not isinstance(one, (list, dict))})
    return found


@pytest.mark.parametrize("field", FIELDS)
def test_values_are_counted_by_item(databases: list[Database], field: str) -> None:
    orders = []
    for database in databases:
        with database.read() as connection:
            found = count_facets(connection, 1, field, 100)
        counts = [(json.dumps(one.value), one.count) for one in found.facets]
        assert dict(counts) == expected(field), connection.dialect.name
        assert found.total == len(counts)
        assert [count for _, count in counts] == sorted((count for _, count in counts), reverse=True)
        orders.append(counts)
    assert orders[0] == orders[1]


def test_only_the_most_frequent_are_returned_and_all_are_counted(databases: list[Database]) -> None:
    for database in databases:
        with database.read() as connection:
            found = count_facets(connection, 1, "kind", 1)
        assert [(one.value, one.count, found.total) for one in found.facets] == [("icon", 2, 3)]
