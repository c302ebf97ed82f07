"""Saves indexes to disk for the next start; a snapshot is verified byte for byte before it is used."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import faiss
import numpy as np

from app.stores.blobs import file_sha256, sync_path
from app.stores.index.base import Base, Kind, Storage, copy_to_device
from app.stores.index.delta import Snapshot
from app.stores.sql.database import failpoint

INDEX_FOLDER = "indexes"  # inside the data folder
FORMAT = 1
RETAINED = 2  # the older one serves if the newest is damaged
MANIFEST = "manifest.json"
BASE = "base.faiss"
ARRAYS = "arrays.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotKey:
    """Identifies what a snapshot belongs to; a snapshot with another key is not used."""

    database_id: str
    gallery_id: int
    fingerprint: str
    dimension: int


class IndexSnapshots:
    """One folder per gallery with its last snapshots; the manifest with every file's SHA-256 is written last.

    Args:
        is_read_only: nothing is saved, and nothing removed, not even what is damaged or unfinished.
    """

    def __init__(self, folder: Path, *, is_read_only: bool = False) -> None:
        self._folder = folder
        self._is_read_only = is_read_only

    def read_only(self) -> "IndexSnapshots":
        """Return the same snapshots for a check, which changes nothing."""
        return IndexSnapshots(self._folder, is_read_only=True)

    def write(self, key: SnapshotKey, snapshot: Snapshot, seq: int) -> None:
        """Save a snapshot. A full or read-only disk is ignored: it only makes the next start slower."""
        target = self._folder / str(key.gallery_id) / f"{seq:020d}"
        if self._is_read_only or target.exists():  # it exists: saved at this seq already
            return
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            _write_files(temporary, key, snapshot, seq)
            failpoint("snapshot.files")
            temporary.rename(target)  # atomic: a folder without the dot is complete
            sync_path(target.parent)
            failpoint("snapshot.renamed")
        except (OSError, RuntimeError):
            shutil.rmtree(temporary, ignore_errors=True)
            return
        for old in self._newest_first(key.gallery_id)[RETAINED:]:
            shutil.rmtree(old, ignore_errors=True)

    def read(self, key: SnapshotKey) -> tuple[Snapshot, int] | None:
        """Return the newest sound snapshot of `key` and its `seq`, or None; damaged and unfinished ones are removed."""
        for path in (self._folder / str(key.gallery_id)).glob(".*") if not self._is_read_only else ():
            shutil.rmtree(path, ignore_errors=True)
        for path in self._newest_first(key.gallery_id):
            saved = _read(path, key)
            if saved is not None:
                return saved
            if not self._is_read_only:
                shutil.rmtree(path, ignore_errors=True)
        return None

    def damaged(self) -> Sequence[Path]:
        """Return the folders of snapshots whose files are not what was written."""
        found = sorted(path for path in self._folder.glob("*/*") if path.name.isdigit())
        return [path for path in found if _manifest(path) is None]

    def keep_only(self, gallery_ids: Collection[int]) -> None:
        """Remove the snapshots of all other galleries."""
        for path in self._folder.glob("*") if not self._is_read_only else ():
            if not (path.name.isdigit() and int(path.name) in gallery_ids):
                shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> None:
        """Remove all snapshots."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _newest_first(self, gallery_id: int) -> list[Path]:
        found = (self._folder / str(gallery_id)).glob("*")
        return sorted((path for path in found if path.name.isdigit()), reverse=True)


def _write_files(folder: Path, key: SnapshotKey, snapshot: Snapshot, seq: int) -> None:
    base, count = snapshot.base, snapshot.delta_count
    faiss.write_index(base.index, str(folder / BASE))
    np.savez(
        folder / ARRAYS,
        ids=base.ids,
        base_dead=snapshot.base_dead,
        delta=snapshot.delta[:count],
        delta_ids=snapshot.delta_ids[:count],
        delta_dead=snapshot.delta_dead,
    )
    manifest = {
        "format": FORMAT,
        **asdict(key),
        "seq": seq,
        "live": snapshot.live,
        "digest": str(snapshot.digest),  # beyond 64 bits
        "kind": base.kind,
        "storage": base.storage,
        "width": base.width,
        "recall": base.recall,
        "sha256": {name: file_sha256(folder / name) for name in (BASE, ARRAYS)},
    }
    text = json.dumps(manifest, indent=1)
    # The manifest carries its own digest too: a flipped bit in `seq` would skip changes.
    (folder / MANIFEST).write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text}))
    for name in (BASE, ARRAYS, MANIFEST):
        sync_path(folder / name)
    sync_path(folder)


def _read(path: Path, key: SnapshotKey) -> tuple[Snapshot, int] | None:
    manifest = _manifest(path)
    try:
        if manifest is None:
            return None
        if any(manifest[name] != value for name, value in {"format": FORMAT, **asdict(key)}.items()):
            return None
        snapshot = _snapshot(path, manifest)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # RuntimeError: FAISS
        return None  # whatever is wrong: the caller rebuilds from SQL
    return (snapshot, manifest["seq"]) if snapshot.live == manifest["live"] else None


def _manifest(path: Path) -> dict[str, Any] | None:
    """Return a snapshot's manifest; None unless it and all files that it names are what was written."""
    try:
        outer = json.loads((path / MANIFEST).read_text())
        if hashlib.sha256(outer["text"].encode()).hexdigest() != outer["sha256"]:
            return None
        manifest: dict[str, Any] = json.loads(outer["text"])
        if any(file_sha256(path / name) != digest for name, digest in manifest["sha256"].items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest


def _snapshot(path: Path, manifest: dict[str, Any]) -> Snapshot:
    kind, storage = manifest["kind"], manifest["storage"]
    # Other releases wrote other kinds, such as `ivf`.
    if kind not in get_args(Kind) or storage not in get_args(Storage):
        raise ValueError("unknown kind or storage")
    index = faiss.read_index(str(path / BASE))
    with np.load(path / ARRAYS, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    if index.ntotal != len(found["ids"]):
        raise ValueError("vectors and ids differ in number")
    base = Base(
        index=index,
        ids=found["ids"],
        kind=kind,
        storage=storage,
        width=int(manifest["width"]),
        recall=None if manifest["recall"] is None else float(manifest["recall"]),
        on_device=copy_to_device(index) if kind == "flat" else None,
    )
    return Snapshot(
        base=base,
        base_dead=found["base_dead"],
        base_dead_count=int(found["base_dead"].sum()),
        delta=found["delta"],
        delta_ids=found["delta_ids"],
        delta_count=len(found["delta_ids"]),
        delta_dead=found["delta_dead"],
        digest=int(manifest["digest"]),
    )
