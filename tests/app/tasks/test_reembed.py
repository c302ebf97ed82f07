"""A change of bundle over real stores: beside the old, switched at once, and back."""

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from pydantic import SecretStr

from app.api.deps import Tasks
from app.errors import Conflict
from app.main import create_app
from app.settings import Settings
from app.stores.index.snapshots import IndexSnapshots
from app.stores.maintenance.check import Maintenance
from app.stores.maintenance.reembed import roll_back
from app.stores.records.jobs import JobState
from app.stores.sql.tables import class_set_vectors, item_vectors, support_vectors
from app.stores.sql.tables import items as item_rows
from tests.app.api.conftest import D as IMAGE_DIMENSION
from tests.app.api.conftest import build_services
from tests.app.api.images import BAR, CROSS, SQUARE, base64_image, png
from tests.app.fakes import DIMENSION
from tests.app.postgres import PostgresServer

pytestmark = pytest.mark.anyio
OLD, NEW = "a" * 64, "b" * 64
INACTIVE = [409, 409, 200, 409]
"""Of a bundle that has vectors of its own but is not the active one: class sets need nothing else."""


@asynccontextmanager
async def serving(
    folder: Path, fingerprint: str, url: str | None, features: Mapping[str, float] | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, Tasks]]:
    """The app with a bundle of that fingerprint, which compares images by these features, over the state."""
    settings = Settings(
        data_dir=folder / fingerprint if url else folder / "data",
        database_url=None if url is None else SecretStr(url),
        blob_url=str(folder / "blobs"),
    )
    app: FastAPI = create_app(settings, partial(build_services, fingerprint=fingerprint, features=features))
    async with app.router.lifespan_context(app):
        await app.state.supervisor.settled()
        services = app.state.platform.services
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, services.tasks


async def fill(client: httpx.AsyncClient) -> str:
    images = [SQUARE, CROSS, BAR, *(base64_image(png(colour=(9 * n, 90, 5 * n))) for n in range(12))]
    body = [{"id": f"i{n}", "image": image} for n, image in enumerate(images)]
    assert (await client.post("/galleries/default/items", json=body)).status_code == 200
    await client.put("/class-sets/scene", json={"classes": ["sea", "sky"]})
    ways = [{"label": "square", "support": [SQUARE]}, {"label": "cross", "support": [CROSS]}]
    episode: str = (await client.post("/fewshot/episodes", json={"ways": ways})).headers["location"]
    return episode


async def statuses(client: httpx.AsyncClient, episode: str) -> list[int]:
    return [
        (await client.post("/retrieve", json={"sketch": SQUARE})).status_code,
        (await client.post(f"{episode}/classify", json={"queries": [SQUARE]})).status_code,
        (await client.post("/segment", json={"image": SQUARE, "class_set": "scene"})).status_code,
        (await client.put("/galleries/default/items/i0", json={"image": SQUARE})).status_code,
    ]


async def test_over_to_another_bundle_and_back(tmp_path: Path) -> None:
    async with serving(tmp_path, OLD, None) as (client, _):
        episode = await fill(client)
    async with serving(tmp_path, NEW, None) as (client, tasks):
        assert await statuses(client, episode) == [409] * 4
        seen: list[tuple[int, int]] = []
        done = await tasks.reembed.run(lambda count, total: seen.append((count, total)))
        assert (done.embedded, done.overlap_at_10) == (15 + 2 + 1, {"default": 1.0})
        assert seen[-1] == (18, 18)
        job = (await client.get(f"/jobs/{done.job}")).json()
        assert (job["state"], job["report"]["embedded"]) == ("succeeded", 18)
        tasks.stores.indexes.catch_up()
        assert await statuses(client, episode) == [200] * 4
        # i0 was written by the new bundle alone.
        with pytest.raises(Conflict, match="1 entries were written since"):
            roll_back(tasks.stores.database)
        await client.delete("/galleries/default/items/i0")
        assert roll_back(tasks.stores.database) == OLD
        tasks.stores.indexes.catch_up()
        assert await statuses(client, episode) == INACTIVE
    async with serving(tmp_path, OLD, None) as (client, tasks):
        assert await statuses(client, episode) == [200, 200, 200, 201]
        assert tasks.stores.indexes.true_digests()["default"] == tasks.stores.indexes.state("default").digest


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_over_to_vectors_of_two_features_and_back(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """A store that was written before images had a feature of their own: another fingerprint, other lengths."""
    url = request.getfixturevalue("postgres").new_database() if kind == "postgresql" else None
    both = {"semantic": 0.5, "visual": 0.5}
    async with serving(tmp_path, OLD, url) as (client, _):
        episode = await fill(client)
        before = (await client.post("/retrieve", json={"image": SQUARE})).json()["results"]
    async with serving(tmp_path, NEW, url, both) as (client, tasks):
        assert await statuses(client, episode) == [409] * 4
        await tasks.reembed.run()
        tasks.stores.indexes.catch_up()
        vector = tasks.stores.galleries.vectors("default", ["i1"])["i1"]
        assert len(vector) == 2 * IMAGE_DIMENSION
        after = (await client.post("/retrieve", json={"image": SQUARE})).json()["results"]
        assert [one["id"] for one in after] == [one["id"] for one in before]
        assert [one["score"] for one in after] == pytest.approx([one["score"] for one in before], abs=1e-3)
        assert roll_back(tasks.stores.database) == OLD
        tasks.stores.indexes.catch_up()
        assert await statuses(client, episode) == INACTIVE
    async with serving(tmp_path, OLD, url) as (client, tasks):
        assert await statuses(client, episode) == [200, 200, 200, 200]
        stores = tasks.stores
        assert stores.indexes.true_digests()["default"] == stores.indexes.state("default").digest
        assert Maintenance(stores.database, stores.blobs, IndexSnapshots(tmp_path / "x")).check(deep=True) == []
    if url is not None:
        request.getfixturevalue("postgres").drop(url)


async def test_beside_a_replica_that_serves_the_old_one_and_writes(tmp_path: Path, postgres: PostgresServer) -> None:
    url = postgres.new_database()
    async with serving(tmp_path, OLD, url) as (old, old_tasks), serving(tmp_path, NEW, url) as (new, tasks):
        episode = await fill(old)

        def write_meanwhile(count: int, _: int) -> None:
            # The old replica serves on; what it adds is embedded before the switch too.
            if count == 15:
                stored = old_tasks.stores.items.item("default", "i1")
                data = old_tasks.stores.items.image("default", "i1")[1]
                vector = old_tasks.stores.galleries.vectors("default", ["i1"])["i1"]
                from app.stores.records.items import NewItem

                late = NewItem(
                    id="late",
                    data=data,
                    media_type=stored.media_type,
                    width=stored.width,
                    height=stored.height,
                    metadata={},
                    caption=None,
                    vector=vector,
                )
                old_tasks.stores.items.upsert("default", [late])

        done = await tasks.reembed.run(write_meanwhile)
        assert done.embedded == 19
        for one in (tasks, old_tasks):
            one.stores.indexes.catch_up()
        assert await statuses(new, episode) == [200] * 4
        assert await statuses(old, episode) == INACTIVE
        assert tasks.stores.items.item("default", "late").id == "late"
    postgres.drop(url)


async def test_a_cancelled_or_hindered_run_switches_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, OLD, None) as (client, tasks):
        episode = await fill(client)
        lost = tasks.stores.items.item("default", "i1").sha256
    async with serving(tmp_path, NEW, None) as (client, tasks):

        def cancel(_: int, __: int) -> None:
            with tasks.stores.database.read() as connection:
                job_id = connection.exec_driver_sql("SELECT id FROM jobs").scalar_one()
            tasks.stores.jobs.delete(job_id)

        with pytest.raises(Conflict, match="cancelled"):
            await tasks.reembed.run(cancel)
        (tmp_path / "blobs" / lost[:2] / lost).unlink()
        with tasks.stores.database.write() as connection:
            connection.exec_driver_sql("DELETE FROM jobs")
            connection.exec_driver_sql(f"DELETE FROM item_vectors WHERE fingerprint = '{NEW}'")
        with pytest.raises(Conflict, match="cannot be embedded"):
            await tasks.reembed.run()
        with tasks.stores.database.read() as connection:
            job_id = connection.exec_driver_sql("SELECT id FROM jobs").scalar_one()
        assert tasks.stores.jobs.get(job_id).state is JobState.FAILED
        assert await statuses(client, episode) == INACTIVE


async def test_the_switch_comes_though_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something is written each time the neighbours are compared, which takes long in a large store."""
    async with serving(tmp_path, OLD, None) as (client, tasks):
        await fill(client)
    async with serving(tmp_path, NEW, None) as (client, tasks):
        original, compared = tasks.reembed._overlap, []

        def overlap() -> object:
            compared.append(True)
            with tasks.stores.database.write() as connection:
                connection.exec_driver_sql(
                    f"DELETE FROM item_vectors WHERE fingerprint = '{NEW}' AND item_id ="
                    f" (SELECT min(item_id) FROM item_vectors WHERE fingerprint = '{NEW}')"
                )
            return original()

        monkeypatch.setattr(tasks.reembed, "_overlap", overlap)
        assert (await tasks.reembed.run()).embedded == 19
        assert len(compared) == 1


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_repair_embeds_what_is_damaged_again_and_every_replica_follows(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres").new_database() if kind == "postgresql" else None
    async with serving(tmp_path, OLD, url) as (client, tasks):
        episode = await fill(client)
        before = [(await client.post("/retrieve", json={"sketch": SQUARE, "k": 20})).json()["results"]]
        listed = (await client.get("/galleries/default/items?limit=100")).json()
        with tasks.stores.database.write() as connection:
            lost = sa.select(item_rows.c.id).where(item_rows.c.external_id == "i4").scalar_subquery()
            connection.execute(sa.delete(item_vectors).where(item_vectors.c.item_id == lost))
            for table, key in ((item_vectors, item_vectors.c.item_id), (support_vectors, support_vectors.c.support_id)):
                first = sa.select(sa.func.min(key)).scalar_subquery()
                connection.execute(sa.update(table).where(key == first).values(vector=bytes(4 * DIMENSION)))
            connection.execute(sa.update(class_set_vectors).values(vectors=bytes(8 * DIMENSION)))
    shutil.rmtree(tmp_path / (OLD if url else "data") / "indexes")  # it holds them as they were
    async with serving(tmp_path, OLD, url) as (client, tasks):
        found = (await client.post("/retrieve", json={"sketch": SQUARE, "k": 20})).json()["results"]
        assert {one["id"] for one in before[0]} - {one["id"] for one in found} == {"i0", "i4"}
        assert "vermouth_index_left_out 2.0" in (await client.get("/metrics")).text
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get(f"{episode}")).status_code == 500
        segmented = await client.post("/segment", json={"image": SQUARE, "class_set": "scene"})
        assert "vermouth db repair" in segmented.json()["detail"]
        assert await tasks.reembed.repair() == 4
        assert await tasks.reembed.repair() == 0
        tasks.stores.indexes.catch_up()
        after = (await client.post("/retrieve", json={"sketch": SQUARE, "k": 20})).json()["results"]
        assert [one["id"] for one in after] == [one["id"] for one in before[0]]
        assert "vermouth_index_left_out 0.0" in (await client.get("/metrics")).text
        assert (await client.get("/galleries/default/items?limit=100")).json() == listed
        assert await statuses(client, episode) == [200] * 4
        stores = tasks.stores
        assert stores.indexes.true_digests()["default"] == stores.indexes.state("default").digest
        assert Maintenance(stores.database, stores.blobs, IndexSnapshots(tmp_path / "x")).check(deep=True) == []
    if url is not None:
        request.getfixturevalue("postgres").drop(url)
