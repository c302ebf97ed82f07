"""Full and read-only disks: a small file system of its own, where this machine lets us mount one."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.errors import DiskFull, EngineUnavailable
from app.stores.blobs import Blobs
from app.stores.index.snapshots import IndexSnapshots
from app.stores.maintenance.check import Maintenance
from app.stores.sql.database import open_database
from tests.app.stores.stores import Stores, new_item, open_stores, unit

SIZE_MIB = 3


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-o", f"size={SIZE_MIB}m", "tmpfs", str(folder)]
    if subprocess.run(["mount", "-t", "tmpfs", *options], check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def remount(mounted: Path) -> Callable[[str], None]:
    def run(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(mounted)], check=True)

    return run


def test_a_full_disk_is_507_and_loses_nothing(mounted: Path, remount: Callable[[str], None]) -> None:
    database, blobs = open_database(data_dir=mounted), Blobs(str(mounted / "blobs"))
    stores = open_stores(database, blobs, snapshots=mounted / "indexes")
    acknowledged: list[str] = []
    with pytest.raises(DiskFull):
        write_until_refused(stores, acknowledged)
    assert acknowledged
    # What is there can be read, and searched, while nothing can be written.
    assert sorted(stores.found(unit(1))) == sorted(acknowledged)
    assert stores.items.image("default", acknowledged[-1])[1]
    stores.indexes.close()
    database.close()
    remount(f"size={4 * SIZE_MIB}m")
    database = open_database(data_dir=mounted)
    again = open_stores(database, blobs, snapshots=mounted / "indexes")
    assert sorted(again.found(unit(1))) == sorted(acknowledged)
    again.items.upsert("default", [new_item("more", unit(1), b"x" * 40_000)])
    assert Maintenance(database, blobs, IndexSnapshots(mounted / "indexes")).check(deep=True) == []
    database.close()


def test_a_read_only_disk_is_reported_and_still_read(mounted: Path, remount: Callable[[str], None]) -> None:
    database, blobs = open_database(data_dir=mounted), Blobs(str(mounted / "blobs"))
    stores = open_stores(database, blobs)
    stores.items.upsert("default", [new_item("a", unit(1))])
    # A file system with files open for writing cannot be made read-only.
    database.engine.dispose()
    database._lock_file.close()  # type: ignore[union-attr]  # it would keep the disk writable
    remount("ro")
    with pytest.raises(EngineUnavailable):
        stores.items.upsert("default", [new_item("b", unit(1))])
    remount("rw")
    assert stores.found(unit(1)) == ["a"]
    stores.items.upsert("default", [new_item("b", unit(1))])
    assert stores.found(unit(1)) == ["a", "b"]
    database.close()


def write_until_refused(stores: Stores, acknowledged: list[str]) -> None:
    for n in range(10_000):
        stores.items.upsert("default", [new_item(f"i{n}", unit(1, n), f"{n}".encode() * 4000)])
        acknowledged.append(f"i{n}")
