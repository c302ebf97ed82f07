"""The stores against plain dictionaries, step by step, restarts and vacuums included."""

import os
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from app.errors import NotFound
from app.stores.blobs import Blobs
from app.stores.filters import matches, parse_filter
from app.stores.index.snapshots import IndexSnapshots
from app.stores.maintenance.check import Maintenance
from app.stores.sql.database import Database, open_database
from tests.app.postgres import PostgresServer
from tests.app.stores.conftest import Report
from tests.app.stores.stores import Stores, new_item, open_stores, unit

EXAMPLES = int(os.environ.get("STORE_EXAMPLES", "8"))
STEPS = int(os.environ.get("STORE_STEPS", "20"))
GALLERIES = st.sampled_from(["default", "pets", "icons"])
IDS = st.sampled_from(["a", "b", "c", "D", "_", "z.1"])
NUMBERS = st.integers(0, 3)
WHERE = st.sampled_from([{"n": 1}, {"n": {"gte": 2}}, {"not": {"n": 0}}, {"t": {"exists": True}}])

Model = dict[str, dict[str, tuple[int, dict[str, object]]]]


class StoreMachine(RuleBasedStateMachine):
    """Every answer of the stores is the model's; a test sets `server` to run it on PostgreSQL."""

    server: ClassVar[PostgresServer | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.url = None if self.server is None else self.server.new_database()
        self.model: Model = {"default": {}}
        self.database: Database
        self.stores: Stores
        self.open()

    def open(self) -> None:
        root = Path(self.folder.name)
        self.database = open_database(data_dir=root, url=self.url)
        self.blobs = Blobs(str(root / "blobs"))
        self.stores = open_stores(self.database, self.blobs, snapshots=root / "indexes")

    @rule(gallery=GALLERIES, ids=st.lists(IDS, min_size=1, max_size=3, unique=True), n=NUMBERS, wait=st.booleans())
    def upsert(self, gallery: str, ids: list[str], n: int, wait: bool) -> None:
        new = [new_item(one, unit(1, n), metadata={"n": n}) for one in ids]
        if gallery not in self.model:
            with pytest.raises(NotFound):
                self.stores.items.upsert(gallery, new)
            return
        known = [one in self.model[gallery] for one in ids]
        assert self.stores.items.upsert(gallery, new, wait=wait).replaced == known
        self.model[gallery].update({one: (n, {"n": n}) for one in ids})

    @rule(gallery=GALLERIES, item_id=IDS, n=NUMBERS)
    def change(self, gallery: str, item_id: str, n: int) -> None:
        if item_id not in self.model.get(gallery, {}):
            with pytest.raises(NotFound):
                self.stores.items.change(gallery, item_id, None)
            return
        vector, old = self.model[gallery][item_id]
        self.stores.items.change(gallery, item_id, lambda metadata: {**metadata, "t": n})
        self.model[gallery][item_id] = (vector, {**old, "t": n})

    @rule(gallery=GALLERIES, item_id=IDS, wait=st.booleans())
    def remove(self, gallery: str, item_id: str, wait: bool) -> None:
        if item_id not in self.model.get(gallery, {}):
            with pytest.raises(NotFound):
                self.stores.items.remove(gallery, item_id)
            return
        self.stores.items.remove(gallery, item_id, wait=wait)
        del self.model[gallery][item_id]

    @rule(gallery=GALLERIES, where=WHERE)
    def remove_many(self, gallery: str, where: dict[str, object]) -> None:
        if gallery not in self.model:
            return
        passing = parse_filter(where)
        gone = [one for one, (_, metadata) in self.model[gallery].items() if matches(passing, metadata)]
        assert self.stores.items.remove_many(gallery, where=passing).count == len(gone)
        for one in gone:
            del self.model[gallery][one]

    @rule(gallery=GALLERIES)
    def put_gallery(self, gallery: str) -> None:
        assert self.stores.galleries.put(gallery, None)[1] is (gallery not in self.model)
        self.model.setdefault(gallery, {})

    @rule(gallery=st.sampled_from(["pets", "icons"]))
    def delete_gallery(self, gallery: str) -> None:
        if self.model.pop(gallery, None) is not None:
            self.stores.galleries.delete(gallery, confirmed=True)

    @rule()
    def restart(self) -> None:
        self.stores.indexes.close()
        self.database.settle()
        self.database.close()
        self.open()

    @rule()
    def vacuum(self) -> None:
        Maintenance(self.database, self.blobs, IndexSnapshots(Path(self.folder.name) / "indexes")).vacuum(
            log_retained_s=0
        )

    @rule()
    def merge(self) -> None:
        for followed in self.stores.indexes._by_id.values():
            followed.index.merge()

    @rule(n=NUMBERS, k=st.integers(1, 5), where=st.one_of(st.none(), WHERE))
    def search(self, n: int, k: int, where: dict[str, object] | None) -> None:
        self.stores.indexes.catch_up()
        passing = None if where is None else parse_filter(where)
        query = unit(1, n)
        for gallery, content in self.model.items():
            scores = {
                one: float(unit(1, vector) @ query)
                for one, (vector, metadata) in content.items()
                if passing is None or matches(passing, metadata)
            }
            expected = sorted(scores, key=lambda one: (-round(scores[one], 5), one))[:k]
            found = self.stores.galleries.search(gallery, query, k=k, min_score=None, where=passing)[1]
            assert [one.external_id for one in found] == expected
            np.testing.assert_allclose([one.score for one in found], [scores[one] for one in expected], atol=1e-5)

    @invariant()
    def rows_are_the_models(self) -> None:
        assert {gallery.name: gallery.count for gallery in self.stores.galleries.all()} == {
            gallery: len(content) for gallery, content in self.model.items()
        }
        for gallery, content in self.model.items():
            page = self.stores.items.page(gallery, after=None, limit=100)[0]
            assert [(item.id, item.metadata) for item in page] == [(one, content[one][1]) for one in sorted(content)]

    def teardown(self) -> None:
        self.stores.indexes.catch_up()
        digests = {name: self.stores.indexes.state(name).digest for name in self.stores.indexes.counts()}
        assert digests == self.stores.indexes.true_digests()
        named = {one for content in self.model.values() for one in content}
        self.database.settle()
        assert len([*self.blobs.names()]) == len(named)
        self.stores.indexes.close()
        self.database.close()
        self.folder.cleanup()
        if self.server is not None and self.url is not None:
            self.server.drop(self.url)


RUN = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_sqlite_equals_the_model(report: Report) -> None:
    run_state_machine_as_test(StoreMachine, settings=RUN)
    report(f"sqlite: {EXAMPLES} random histories of up to {STEPS} steps equal a plain dictionary")


def test_postgresql_equals_the_model(postgres: PostgresServer, report: Report) -> None:
    class PostgresMachine(StoreMachine):
        server = postgres

    run_state_machine_as_test(PostgresMachine, settings=RUN)
    report(f"postgresql: {EXAMPLES} random histories of up to {STEPS} steps equal a plain dictionary")
