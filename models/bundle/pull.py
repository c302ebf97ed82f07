"""`vermouth bundle pull`: downloads hub sources, verifies them and pins them in `bundle.lock.json`.

Of the hub only the commit of a revision is trusted; what is pinned are the digests of the downloaded bytes, and from
then on the pinned ones decide.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from models.bundle.download import HubFile, explained, fetch, list_files
from models.bundle.files import hub_sources, lock_files, read_lock, read_manifest, sha256, source_folder
from models.bundle.manifest import HubSource, Lock, LockedSource
from models.errors import BundleError, ChecksumError


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSource:
    """A source and what of it is left to download."""

    name: str
    source: HubSource
    commit: str
    files: Mapping[str, HubFile]
    missing_bytes: Mapping[str, int]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a pull is going to do.

    Attributes:
        sources: those that are not complete yet.
        missing_bytes: bytes to download.
        free_bytes: free on the disk of the cache.
    """

    bundle: str
    licence: str
    sources: tuple[PlannedSource, ...]
    missing_bytes: int
    cache: Path
    free_bytes: int


class PullListener(Protocol):
    """Watches a pull."""

    def planned(self, plan: Plan) -> None:
        """Called before the first byte is downloaded."""
        ...

    def started(self, file: HubFile, missing_bytes: int) -> None:
        """Called before each file that is not complete."""
        ...

    def advanced(self, count: int) -> None:
        """Called with each number of bytes that arrived; negative where bytes were discarded."""
        ...


def pull(bundle: Path, listener: PullListener, *, profile: str | None = None, wait_s: float = 1.0) -> Path | None:
    """Downloads and pins the hub sources of a bundle and of one profile; sources pinned before keep their commit.

    Without a connection it succeeds for a bundle whose files are all in the cache. Killed at any point, the next pull
    goes on where this one was.

    Args:
        bundle: folder of the manifest.
        listener: is shown the plan, then each file.
        profile: a profile whose components are wanted too.
        wait_s: pause after the first failed connection.

    Returns:
        The lock file, written only after every file is verified; None if everything was there already.

    Raises:
        BundleError: a wanted file does not exist, the hub cannot be reached or refuses, or the disk has no room.
        ChecksumError: a file differs from the hub's digest or from the existing lock.
    """
    sources = hub_sources(bundle, profile)
    open_sources = {name: source for name, source in sources.items() if not _is_complete(source, bundle)}
    if not open_sources:
        return None
    commits: dict[tuple[str, str], tuple[str, Mapping[str, HubFile]]] = {}
    planned = []
    for name, source in open_sources.items():
        key = (source.repo, source.revision)
        if key not in commits:  # asked once: a branch may move meanwhile, and a model's parts belong together
            commits[key] = list_files(*key)
        planned.append(_plan(name, source, *commits[key]))
    plan = _whole_plan(bundle, planned)
    listener.planned(plan)
    _check_room(plan)
    for part in planned:
        for file in part.files.values():
            if missing := part.missing_bytes[file.name]:
                listener.started(file, missing)
            fetch(file, listener.advanced, wait_s=wait_s)
    return _pin(bundle, {part.name: _locked(part, bundle) for part in planned})


def _is_complete(source: HubSource, bundle: Path) -> bool:
    if not source.files:
        return False
    folder = source_folder(source, bundle)
    files = [(folder / name, digest) for name, digest in source.files.items()]
    return all(file.is_file() and sha256(file) == digest for file, digest in files)


def _plan(name: str, source: HubSource, commit: str, known: Mapping[str, HubFile]) -> PlannedSource:
    prefix = "" if source.path == "." else f"{source.path}/"
    for wanted in source.wanted:
        file = known.get(prefix + wanted)
        if file is None:
            raise BundleError(f"'{source.repo}' at {commit} has no file '{prefix + wanted}'")
        if file.sha256 and source.files.get(wanted, file.sha256) != file.sha256:
            raise ChecksumError(f"'{file.name}' of '{source.repo}' at {commit} is not the file that the lock names")
    files = {wanted: known[prefix + wanted] for wanted in source.wanted}
    with explained(source.repo, commit):
        missing = {file.name: file.missing_bytes() for file in files.values()}
    return PlannedSource(name=name, source=source, commit=commit, files=files, missing_bytes=missing)


def _whole_plan(bundle: Path, planned: list[PlannedSource]) -> Plan:
    cache = Path(constants.HF_HUB_CACHE)
    with explained(planned[0].source.repo, planned[0].commit):
        cache.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(cache).free
    manifest = read_manifest(bundle)
    # By blob: components may share a file.
    missing = {file.blob: part.missing_bytes[file.name] for part in planned for file in part.files.values()}
    return Plan(
        bundle=manifest.name,
        licence=manifest.licence,
        sources=tuple(planned),
        missing_bytes=sum(missing.values()),
        cache=cache,
        free_bytes=free_bytes,
    )


def _check_room(plan: Plan) -> None:
    if plan.missing_bytes > plan.free_bytes:
        raise BundleError(
            f"{plan.missing_bytes / 1e9:.1f} GB are to be downloaded and {plan.free_bytes / 1e9:.1f} GB are free in "
            f"{plan.cache}: free some space, or set HF_HOME to a folder on another disk"
        )


def _locked(part: PlannedSource, bundle: Path) -> LockedSource:
    source = part.source
    digests = {wanted: file.sha256 or sha256(file.path) for wanted, file in part.files.items()}
    for wanted, digest in digests.items():
        if source.files and source.files[wanted] != digest:  # pulled before: the lock outranks the hub
            raise ChecksumError(f"{part.files[wanted].path} is not the file that the lock of {bundle} names")
    return LockedSource(repo=source.repo, requested=source.revision, revision=part.commit, files=digests)


def _pin(bundle: Path, pinned: Mapping[str, LockedSource]) -> Path:
    """Adds entries to the lock, beside the manifest where that folder can be written, else in HF_HOME."""
    beside, shared = lock_files(bundle)
    file = beside if os.access(bundle, os.W_OK) else shared
    guard = Path(constants.HF_HUB_CACHE) / ".locks" / f"{shared.name}.guard"
    with WeakFileLock(guard):  # pulls of two profiles at once add to each other's entries
        before = read_lock(bundle).root
        # An entry that still holds keeps the name of the branch that it was made from.
        held = {name: entry for name, entry in before.items() if _holds(entry, pinned.get(name))}
        lock = Lock(dict(sorted({**pinned, **held}.items())))
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as opened:
            opened.write(lock.model_dump_json(indent=2) + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        temporary = Path(opened.name)
        temporary.chmod(0o644)  # a temporary file is its owner's alone; other users serve the bundle
        temporary.replace(file)  # atomic: a lock is never half written
    return file


def _holds(entry: LockedSource, pulled: LockedSource | None) -> bool:
    return pulled is None or (entry.repo, entry.revision, entry.files) == (pulled.repo, pulled.revision, pulled.files)
