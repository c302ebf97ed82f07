"""Measure writes to a store on SQLite, and its start from SQL.

`python -m benchmarks.index.writes` prints medians in milliseconds. Run as a file, it measures the tree in PYTHONPATH.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.stores.blobs import Blobs
from app.stores.index.base import IndexOptions
from app.stores.index.follower import Indexes
from app.stores.records.galleries import Galleries
from app.stores.records.items import Items, NewItem
from app.stores.sql.database import Database, open_database

DIMENSION = 384
FINGERPRINT = "bench"
TIMES, BATCH, LOADED = 9, 256, 100_000


def main() -> None:
    """Time a batch and one item until they can be searched, then a start with many."""
    with tempfile.TemporaryDirectory() as name:
        database, blobs = open_database(data_dir=Path(name)), Blobs(f"{name}/blobs")
        writer = Items(database, blobs, _loaded(database, blobs), fingerprint=FINGERPRINT)
        row = {
            f"batch of {BATCH}": _median_ms(lambda at: writer.upsert("default", _items(at, BATCH))),
            "one item": _median_ms(lambda at: writer.upsert("default", _items(TIMES + at, 1))),
        }
        for at in range(LOADED // BATCH):
            writer.upsert("default", _items(2 * TIMES + at, BATCH), wait=False)  # stored only: no index follows
        row[f"load of {LOADED}"] = _median_ms(lambda _: _loaded(database, blobs))
        database.close()
    sys.stdout.write(json.dumps({step: round(ms, 2) for step, ms in row.items()}) + "\n")


def _loaded(database: Database, blobs: Blobs) -> Indexes:
    options = IndexOptions(kind="flat")  # no graph is built meanwhile
    indexes = Indexes(database, dimension=DIMENSION, fingerprint=FINGERPRINT, options=options, snapshots=None)
    Galleries(database, blobs, indexes, fingerprint=FINGERPRINT).load()
    return indexes


def _items(part: int, count: int) -> list[NewItem]:
    vectors = np.random.default_rng(part).standard_normal((count, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # One image for all: its file is written once, and what remains is SQL and the index.
    image = {"data": b"image", "media_type": "image/png", "width": 64, "height": 64, "caption": None}
    return [
        NewItem(id=f"item-{part}-{at}", metadata={"name": f"item {at}", "part": part}, vector=vector, **image)
        for at, vector in enumerate(vectors)
    ]


def _median_ms(step: Callable[[int], object]) -> float:
    times_s = []
    for at in range(TIMES):
        started_s = time.perf_counter()
        step(at)
        times_s.append(time.perf_counter() - started_s)
    return statistics.median(times_s) * 1000


if __name__ == "__main__":
    main()
