"""Indexes kept on disk over a restart: checked byte for byte before they are believed."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import faiss
import numpy as np

from app.stores.index.base import Base, Kind, Storage, copy_to_device
from app.stores.index.delta import Snapshot
from app.stores.sql.failpoints import failpoint

FORMAT = 1
KEPT = 2
MANIFEST = "manifest.json"
BASE = "base.faiss"
ARRAYS = "arrays.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotKey:
    """What a snapshot is of; one of anything else is not taken."""

    database_id: str
    gallery_id: int
    fingerprint: str
    dimension: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A snapshot that was read whole, and the `seq` it stands at."""

    snapshot: Snapshot
    seq: int


class IndexSnapshots:
    """A folder a gallery, in it the last snapshots; the manifest is written last, with every file's SHA-256.

    Args:
        folder: where they lie; made when absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, key: SnapshotKey, snapshot: Snapshot, seq: int) -> None:
        """Keep a snapshot; a full or read-only disk costs the next start time, nothing else."""
        target = self._folder / str(key.gallery_id) / f"{seq:020d}"
        if target.exists():
            return
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            self._write_files(temporary, key, snapshot, seq)
            failpoint("snapshot.files")
            temporary.rename(target)
            _sync(target.parent)
            failpoint("snapshot.renamed")
        except (OSError, RuntimeError):
            shutil.rmtree(temporary, ignore_errors=True)
            return
        for old in self._kept(key.gallery_id)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def read(self, key: SnapshotKey) -> Saved | None:
        """The newest sound snapshot of `key`; None where there is none. Damaged and unfinished ones are removed."""
        for path in (self._folder / str(key.gallery_id)).glob(".*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self._kept(key.gallery_id):
            saved = _read(path, key)
            if saved is not None:
                return saved
            shutil.rmtree(path, ignore_errors=True)
        return None

    def keep_only(self, gallery_ids: Collection[int]) -> None:
        """Remove the snapshots of other galleries."""
        for path in self._folder.iterdir() if self._folder.exists() else ():
            if not (path.name.isdigit() and int(path.name) in gallery_ids):
                shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> None:
        """Remove all."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kept(self, gallery_id: int) -> list[Path]:
        """Snapshot folders, the newest first."""
        folder = self._folder / str(gallery_id)
        if not folder.is_dir():
            return []
        return sorted((path for path in folder.iterdir() if path.name.isdigit()), reverse=True)

    def _write_files(self, folder: Path, key: SnapshotKey, snapshot: Snapshot, seq: int) -> None:
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
            "database_id": key.database_id,
            "gallery_id": key.gallery_id,
            "fingerprint": key.fingerprint,
            "dimension": key.dimension,
            "seq": seq,
            "live": snapshot.live,
            "digest": str(snapshot.digest),
            "kind": base.kind,
            "storage": base.storage,
            "width": base.width,
            "recall": base.recall,
            "sha256": {name: _sha256(folder / name) for name in (BASE, ARRAYS)},
        }
        text = json.dumps(manifest, indent=1)
        (folder / MANIFEST).write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text}))
        for name in (BASE, ARRAYS, MANIFEST):
            _sync(folder / name)
        _sync(folder)


def _read(path: Path, key: SnapshotKey) -> Saved | None:
    try:
        outer = json.loads((path / MANIFEST).read_text())
        if hashlib.sha256(outer["text"].encode()).hexdigest() != outer["sha256"]:
            return None
        manifest = json.loads(outer["text"])
        wanted = {
            "format": FORMAT,
            "database_id": key.database_id,
            "gallery_id": key.gallery_id,
            "fingerprint": key.fingerprint,
            "dimension": key.dimension,
        }
        if any(manifest[name] != value for name, value in wanted.items()):
            return None
        if any(_sha256(path / name) != digest for name, digest in manifest["sha256"].items()):
            return None
        snapshot = _snapshot(path, manifest)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        # Whatever is wrong with it: it is only a copy.
        return None
    return Saved(snapshot=snapshot, seq=manifest["seq"]) if snapshot.live == manifest["live"] else None


def _snapshot(path: Path, manifest: dict[str, object]) -> Snapshot:
    index = faiss.read_index(str(path / BASE))
    with np.load(path / ARRAYS, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    kind, storage = manifest["kind"], manifest["storage"]
    if kind not in get_args(Kind) or storage not in get_args(Storage) or index.ntotal != len(found["ids"]):
        raise ValueError("not an index of ours")
    base = Base(
        index=index,
        ids=found["ids"],
        kind=kind,  # type: ignore[arg-type]  # one of the names, as just checked
        storage=storage,  # type: ignore[arg-type]  # likewise
        width=int(str(manifest["width"])),
        recall=None if manifest["recall"] is None else float(str(manifest["recall"])),
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
        digest=int(str(manifest["digest"])),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
