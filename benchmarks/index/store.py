"""The whole store over an index: SQLite filled, one write at a time, filters in SQL, a restart in a fresh process."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.stores.blobs import Blobs
from app.stores.filters.tree import parse_filter
from app.stores.index.base import IndexOptions
from app.stores.index.delta import VectorIndex
from app.stores.index.follower import Indexes
from app.stores.index.snapshots import IndexSnapshots, SnapshotKey
from app.stores.records.galleries import Galleries
from app.stores.records.items import Items, NewItem
from app.stores.sql import change_log, metadata
from app.stores.sql.database import SQLITE_FILE, Database, open_database
from app.stores.sql.tables import galleries, item_vectors, items, pack, unpack
from benchmarks.index.sample import K, Sample, percentile_ms

FINGERPRINT = "bench"
ROWS_AT_ONCE = 5000
WRITES, SEARCHES = 50, 10
STEP = 200


def measure(sample: Sample, index: VectorIndex, options: IndexOptions) -> dict[str, Any]:
    """One row: fill, restart with and without a snapshot, write, delete, filter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dimension = sample.vectors.shape[1]
        database = open_database(data_dir=folder)
        _, stores = _stores(database, folder, dimension, options)
        stores.load()
        started = time.perf_counter()
        _fill(database, sample)
        row: dict[str, Any] = {"fill_s": time.perf_counter() - started}
        started = time.perf_counter()
        _keep_snapshot(database, folder, index)
        row["snapshot_s"] = time.perf_counter() - started
        database.close()
        row["database_bytes"] = (folder / SQLITE_FILE).stat().st_size
        row["restart"] = _restarted(folder, dimension, options)
        row.update(_used(folder, sample, options))
        (folder / "indexes").rename(folder / "gone")
        row["restart_from_sql"] = _restarted(folder, dimension, options)
        return row


def restart(folder: Path, dimension: int, options: IndexOptions) -> dict[str, Any]:
    """Open the store, as a start does, and search once; called in a process of its own, which then just ends."""
    before = _resident_bytes()
    started = time.perf_counter()
    database = open_database(data_dir=folder)
    indexes, stores = _stores(database, folder, dimension, options)
    stores.load()
    exact = indexes.counts()["default"]
    query = _first_vector(database)
    found = stores.search("default", query, k=K, min_score=None)[1]
    took = time.perf_counter() - started
    state = indexes.state("default")
    return {
        "serves_s": took,
        "kind": state.kind,
        "vectors": exact,
        "found": len(found),
        "bytes": _resident_bytes() - before,
    }


def _stores(database: Database, folder: Path, dimension: int, options: IndexOptions) -> tuple[Indexes, Galleries]:
    indexes = Indexes(
        database,
        dimension=dimension,
        fingerprint=FINGERPRINT,
        options=options,
        snapshots=IndexSnapshots(folder / "indexes"),
    )
    return indexes, Galleries(database, Blobs(str(folder / "blobs")), indexes, fingerprint=FINGERPRINT)


def _fill(database: Database, sample: Sample) -> None:
    """Rows as `Items.upsert` writes them, many at a time; metadata say which share of filters they pass."""
    with database.write() as connection:
        gallery = connection.execute(sa.select(galleries.c.id)).scalar_one()
        for start in range(0, len(sample.vectors), ROWS_AT_ONCE):
            numbers = range(start + 1, min(start + ROWS_AT_ONCE, len(sample.vectors)) + 1)
            seqs = change_log.take(connection, len(numbers))
            rows = [_row(gallery, number, seq) for number, seq in zip(numbers, seqs, strict=True)]
            connection.execute(sa.insert(items), rows)
            vectors = [
                {"item_id": n, "fingerprint": FINGERPRINT, "dtype": "fp32", "vector": pack(sample.vectors[n - 1])}
                for n in numbers
            ]
            connection.execute(sa.insert(item_vectors), vectors)
            change_log.note(connection, seqs, "item.put", "default", list(numbers))


def _row(gallery: int, number: int, seq: int) -> dict[str, object]:
    return {
        "id": number,
        "gallery_id": gallery,
        "external_id": f"item-{number:07}",
        "sha256": f"{number:064x}",
        "media_type": "image/png",
        "width": 64,
        "height": 64,
        "metadata": {"name": f"item {number}", "part": number % STEP},
        "created_at": 0.0,
        "seq": seq,
        "added_seq": seq,
    }


def _keep_snapshot(database: Database, folder: Path, index: VectorIndex) -> None:
    with database.read() as connection:
        key = SnapshotKey(
            database_id=metadata.read(connection, metadata.DATABASE_ID) or "",
            gallery_id=connection.execute(sa.select(galleries.c.id)).scalar_one(),
            fingerprint=FINGERPRINT,
            dimension=index.snapshot.base.dimension,
        )
        seq = change_log.head(connection)
    IndexSnapshots(folder / "indexes").write(key, index.snapshot, seq)


def _used(folder: Path, sample: Sample, options: IndexOptions) -> dict[str, Any]:
    """Writes and deletes until they are searchable and durable, and filters worked out in SQL."""
    database = open_database(data_dir=folder)
    indexes, stores = _stores(database, folder, sample.vectors.shape[1], options)
    stores.load()
    written = Items(database, Blobs(str(folder / "blobs")), indexes, fingerprint=FINGERPRINT)
    new = [_new_item(n, sample) for n in range(WRITES)]
    insert, delete = list[float](), list[float]()
    for one in new:
        started = time.perf_counter()
        written.upsert("default", [one])
        insert.append(time.perf_counter() - started)
        if stores.search("default", one.vector, k=1, min_score=None)[1][0].score < 1 - 1e-4:
            raise SystemExit("an item was not found at once")
    for one in new:
        started = time.perf_counter()
        written.remove("default", one.id)
        delete.append(time.perf_counter() - started)
    told: dict[str, Any] = {"insert_ms": percentile_ms(insert, 50), "delete_ms": percentile_ms(delete, 50)}
    told["sql_filtered"] = [_sql_filtered(stores, sample, share) for share in (0.5, 0.05, 0.005)]
    indexes.discard()
    database.close()
    return told


def _sql_filtered(stores: Galleries, sample: Sample, share: float) -> dict[str, float]:
    where = parse_filter({"part": {"lt": int(share * STEP)}})
    took, whole = list[float](), 0
    for query in sample.queries[:SEARCHES]:
        started = time.perf_counter()
        found = stores.search("default", query, k=K, min_score=None, where=where)[1]
        took.append(time.perf_counter() - started)
        whole += len(found) == min(K, int(share * len(sample.vectors)))
    again = percentile_ms(took[1:], 50)
    return {"share": share, "whole": whole / SEARCHES, "first_ms": took[0] * 1e3, "again_ms": again}


def _new_item(number: int, sample: Sample) -> NewItem:
    return NewItem(
        id=f"new-{number}",
        data=f"picture {number}".encode() * 200,
        media_type="image/png",
        width=64,
        height=64,
        metadata={},
        caption=None,
        vector=sample.queries[number],
    )


def _restarted(folder: Path, dimension: int, options: IndexOptions) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.index", "--restart", str(folder), "--flat-rows"]
    command += [str(options.flat_rows), "--dimension", str(dimension)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _first_vector(database: Database) -> Any:
    """The vector of the first item."""
    with database.read() as connection:
        return unpack(connection.execute(sa.select(item_vectors.c.vector).limit(1)).scalar_one())


def _resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096
