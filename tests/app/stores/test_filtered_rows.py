"""The rows that pass a filter are cached, and only changed ones are queried again; see also `test_model.py`."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from app.stores.blobs import Blobs
from app.stores.filters import Filter, parse_filter
from app.stores.index.snapshots import IndexSnapshots
from app.stores.maintenance.check import Maintenance
from app.stores.records import filtered_rows
from app.stores.records.filtered_rows import FilteredRows, Ids
from app.stores.sql.database import Database
from tests.app.stores.stores import Stores, new_item, open_stores, unit

EVEN = parse_filter({"even": True})


class Asked(list[list[int] | None]):
    """Which rows SQL was asked about, question by question; None for all."""


@pytest.fixture
def stores(database: Database, blobs: Blobs) -> Stores:
    stores = open_stores(database, blobs)
    items = [new_item(f"i{n}", unit(1, n), metadata={"even": n % 2 == 0}) for n in range(6)]
    stores.items.upsert("default", items)
    return stores


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked, select = Asked(), filtered_rows._select

    def noted(connection: sa.Connection, gallery_id: int, where: Filter, among: Ids | None) -> Ids:
        asked.append(None if among is None else among.tolist())
        return select(connection, gallery_id, where, among)

    monkeypatch.setattr(filtered_rows, "_select", noted)
    return asked


def found(stores: Stores, where: Filter = EVEN) -> list[str]:
    results = stores.galleries.search("default", unit(1), k=10, min_score=None, where=where)[1]
    return sorted(one.external_id for one in results)


def test_a_filter_asked_again_reads_no_rows(stores: Stores, asked: Asked) -> None:
    assert found(stores) == found(stores) == ["i0", "i2", "i4"]
    assert asked == [None]


def test_only_rows_that_changed_are_asked_for(stores: Stores, asked: Asked) -> None:
    found(stores)
    _, changed = stores.items.change("default", "i1", lambda metadata: {**metadata, "even": True})
    assert found(stores) == ["i0", "i1", "i2", "i4"]
    stores.items.change("default", "i0", lambda metadata: {**metadata, "even": False})
    stores.items.remove("default", "i2")
    stores.items.upsert("default", [new_item("i6", unit(1, 6), metadata={"even": True})])
    assert found(stores) == ["i1", "i4", "i6"]
    assert changed.id == "i1"
    assert [len(rows or ()) for rows in asked] == [0, 1, 3]
    assert asked[0] is None


def test_values_that_python_takes_for_equal_are_different_filters(stores: Stores) -> None:
    assert len(found(stores, parse_filter({"even": True}))) == 3
    assert found(stores, parse_filter({"even": 1})) == []


@pytest.mark.parametrize("how", ["many-changes", "vacuum"])
def test_everything_is_queried_again_where_the_log_cannot_name_the_changes(
    stores: Stores, asked: Asked, database: Database, blobs: Blobs, tmp_path: Path, how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found(stores)
    if how == "many-changes":
        monkeypatch.setattr(filtered_rows, "MAX_CHANGED", 1)
    stores.items.upsert("default", [new_item(f"i{n}", unit(1, n), metadata={"even": True}) for n in (1, 3)])
    if how == "vacuum":
        Maintenance(database, blobs, IndexSnapshots(tmp_path / "indexes")).vacuum(log_retained_s=0)
    assert found(stores) == ["i0", "i1", "i2", "i3", "i4"]
    assert asked == [None, None]


def test_many_filters_are_bounded_in_bytes(stores: Stores, database: Database) -> None:
    stores.galleries.get("default")
    rows = FilteredRows(database, max_bytes=4096)
    for number in range(64):
        rows.passing(1, parse_filter({"number": number}))
    assert rows._answers.size_bytes <= 4096
