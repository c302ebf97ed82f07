"""Measure the whole store over an index: SQLite filled, one write at a time, filters in SQL, restarts.

`python -m benchmarks.index.store FOLDER` opens a store in a fresh process, as a restart does, and prints JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from app.stores.blobs import Blobs
from app.stores.filters import parse_filter
from app.stores.index.base import IndexOptions
from app.stores.index.delta import VectorIndex
from app.stores.index.follower import Indexes
from app.stores.index.snapshots import IndexSnapshots, SnapshotKey
from app.stores.records.galleries import Galleries
from app.stores.records.items import Items, NewItem
from app.stores.sql import change_log, metadata
from app.stores.sql.checksums import sealed
from app.stores.sql.database import SQLITE_FILE, Database, open_database
from app.stores.sql.tables import galleries, item_vectors, items, unpack
from benchmarks.index.sample import DIMENSION, SHARES, Ids, K, Matrix, Row, Sample, filtered
from benchmarks.report import percentile_ms

FINGERPRINT = "bench"
ROWS_AT_ONCE = 5000  # in one insert
WRITES, SEARCHES = 50, 10
PARTS = 200  # metadata divide the items into so many parts, so that a filter can leave one half of a hundredth


def measure(sample: Sample, index: VectorIndex) -> Row:
    """Fill the store, restart it with and without a snapshot, write, delete and filter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = open_database(data_dir=folder)
        _stores(database, folder)[1].load()  # makes the default gallery
        _fill(database, sample)
        _write_snapshot(database, folder, index)
        database.close()
        row: Row = {"database_bytes": (folder / SQLITE_FILE).stat().st_size, "restart": _restarted(folder)}
        row |= _used(folder, sample)
        (folder / "indexes").rename(folder / "gone")  # without snapshots, only SQL is left
        row["restart_from_sql"] = _restarted(folder)
        return row


def restart(folder: Path) -> Row:
    """Open the store, as a start does, and search once."""
    before, started_s = _resident_bytes(), time.perf_counter()
    database = open_database(data_dir=folder)
    indexes, stored = _stores(database, folder)
    stored.load()
    with database.read() as connection:
        query = unpack(connection.execute(sa.select(item_vectors.c.vector).limit(1)).scalar_one())
    stored.search("default", query, k=K, min_score=None)
    took_s = time.perf_counter() - started_s
    return {"serves_s": took_s, "kind": indexes.state("default").kind, "bytes": _resident_bytes() - before}


def _restarted(folder: Path) -> Row:
    command = [sys.executable, "-m", "benchmarks.index.store", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def _stores(database: Database, folder: Path) -> tuple[Indexes, Galleries]:
    indexes = Indexes(
        database,
        dimension=DIMENSION,
        fingerprint=FINGERPRINT,
        options=IndexOptions(),
        snapshots=IndexSnapshots(folder / "indexes"),
    )
    return indexes, Galleries(database, Blobs(str(folder / "blobs")), indexes, fingerprint=FINGERPRINT)


def _fill(database: Database, sample: Sample) -> None:
    """Insert the rows that `Items.upsert` would write, many at a time."""
    with database.write() as connection:
        gallery = connection.execute(sa.select(galleries.c.id)).scalar_one()
        for start in range(0, len(sample.vectors), ROWS_AT_ONCE):
            numbers = range(start + 1, min(start + ROWS_AT_ONCE, len(sample.vectors)) + 1)
            seqs = change_log.take(connection, len(numbers))
            rows = [_row(gallery, number, seq) for number, seq in zip(numbers, seqs, strict=True)]
            connection.execute(sa.insert(items), rows)
            vectors = [
                {"item_id": n, "fingerprint": FINGERPRINT, "dtype": "fp32", **sealed(name_of(n), sample.vectors[n - 1])}
                for n in numbers
            ]
            connection.execute(sa.insert(item_vectors), vectors)
            change_log.note(connection, seqs, "item.put", "default", list(numbers))


def name_of(number: int) -> str:
    """The external id of an item."""
    return f"item-{number:07}"


def _row(gallery: int, number: int, seq: int) -> Row:
    image = {"sha256": f"{number:064x}", "media_type": "image/png", "width": 64, "height": 64, "created_at": 0.0}
    about = {"name": f"item {number}", "part": number % PARTS}
    named = {"id": number, "gallery_id": gallery, "external_id": name_of(number), "metadata": about}
    return {**named, **image, "seq": seq, "added_seq": seq}


def _write_snapshot(database: Database, folder: Path, index: VectorIndex) -> None:
    with database.read() as connection:
        key = SnapshotKey(
            database_id=metadata.read(connection, metadata.DATABASE_ID) or "",
            gallery_id=connection.execute(sa.select(galleries.c.id)).scalar_one(),
            fingerprint=FINGERPRINT,
            dimension=DIMENSION,
        )
        seq = change_log.head(connection)
    IndexSnapshots(folder / "indexes").write(key, index.snapshot, seq)


def _used(folder: Path, sample: Sample) -> Row:
    """Time writes and deletes until they are searchable and durable, and filters evaluated in SQL."""
    database = open_database(data_dir=folder)
    indexes, stored = _stores(database, folder)
    stored.load()
    writer = Items(database, Blobs(str(folder / "blobs")), indexes, fingerprint=FINGERPRINT)
    image: Row = {"media_type": "image/png", "width": 64, "height": 64, "metadata": {}, "caption": None}
    new = [
        NewItem(id=f"new-{number}", data=f"image {number}".encode() * 200, vector=sample.queries[number], **image)
        for number in range(WRITES)
    ]
    times_s: dict[str, list[float]] = {"insert": [], "delete": []}
    for item in new:
        started_s = time.perf_counter()
        writer.upsert("default", [item])
        times_s["insert"].append(time.perf_counter() - started_s)
        if stored.search("default", item.vector, k=1, min_score=None)[1][0].score < 1 - 1e-4:
            raise SystemExit("an item was not found by the search after its insert")
    for item in new:
        started_s = time.perf_counter()
        writer.remove("default", item.id)
        times_s["delete"].append(time.perf_counter() - started_s)
    row: Row = {f"{change}_ms": percentile_ms(seconds, 50) for change, seconds in times_s.items()}
    row["sql_filtered"] = [_filtered(stored, sample, share) for share in SHARES]
    indexes.discard()
    database.close()
    return row


def _filtered(stored: Galleries, sample: Sample, share: float) -> Row:
    parts = int(share * PARTS)
    where = parse_filter({"part": {"lt": parts}})

    def search(query: Matrix) -> Ids:
        found = stored.search("default", query, k=K, min_score=None, where=where)[1]
        return np.array([int(each.item_id) for each in found], np.int64)

    row = filtered(sample, sample.ids[sample.ids % PARTS < parts], search, SEARCHES)
    return {"share": share, "whole": row["whole"], "first_ms": row["first_ms"], "again_ms": row["p50_ms"]}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(restart(Path(sys.argv[1]))) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a graph may be building in the background, for minutes
