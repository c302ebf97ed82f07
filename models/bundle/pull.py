"""`vermouth bundle pull`: downloads hub sources and pins them in `bundle.lock.json`.

The hub gives the commit of a revision and the digest of each file; only digests of the downloaded bytes are pinned.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from models.bundle.files import components, read_manifest, sha256
from models.bundle.manifest import LOCK, HubSource
from models.errors import BundleError, ChecksumError


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """The hub's digests of a file: SHA-256 for large files, else git's blob id (SHA-1 of header and content)."""

    sha256: str | None
    blob_id: str | None


class Hub(Protocol):
    """The part of a hub that `pull` needs."""

    def files(self, repo: str, revision: str) -> tuple[str, Mapping[str, HubFile]]:
        """Returns the commit of a revision, and every file in it."""
        ...

    def download(self, repo: str, commit: str, names: Sequence[str]) -> Path:
        """Returns the local snapshot that holds these files."""
        ...


class HuggingFaceHub:
    """The Hugging Face hub through its own client, which also reads the user's token."""

    def files(self, repo: str, revision: str) -> tuple[str, Mapping[str, HubFile]]:
        """See `Hub.files`. Raises BundleError if the repository or revision cannot be reached."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        except (HfHubHTTPError, OSError) as err:
            raise BundleError(f"the hub does not answer for '{repo}' at {revision}: is its name right?") from err
        if info.sha is None:
            raise BundleError(f"the hub names no commit for '{repo}' at {revision}")
        return info.sha, {
            file.rfilename: HubFile(sha256=file.lfs.sha256 if file.lfs else None, blob_id=file.blob_id)
            for file in info.siblings or []
        }

    def download(self, repo: str, commit: str, names: Sequence[str]) -> Path:
        """See `Hub.download`. Raises BundleError if it fails."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return Path(snapshot_download(repo, revision=commit, allow_patterns=list(names)))
        except (HfHubHTTPError, OSError) as err:
            raise BundleError(f"'{repo}' at {commit} could not be fetched") from err


def pull(bundle: Path, hub: Hub, *, report: Callable[[str], None] = lambda _: None) -> Path:
    """Downloads and pins every hub source of a bundle; a locked source keeps its commit and digests.

    `report` is called with a line for each source.

    Returns:
        The lock file, written only after every file is verified.

    Raises:
        BundleError: a wanted file does not exist, or the hub cannot be reached.
        ChecksumError: a file differs from the hub's digest or from the existing lock.
    """
    pinned: dict[str, dict[str, object]] = {}
    for name, part in components(read_manifest(bundle)):
        source = part.source
        if isinstance(source, HubSource):
            report(f"{name}: {source.repo} at {source.revision}")
            commit, files = _pull_source(source, hub)
            pinned[name] = {"revision": commit, "files": files}
    lock = bundle / LOCK
    temporary = lock.with_suffix(".partial")
    temporary.write_text(json.dumps(pinned, indent=2, sort_keys=True) + "\n")
    temporary.replace(lock)  # atomic: a lock is never half written
    return lock


def _pull_source(source: HubSource, hub: Hub) -> tuple[str, dict[str, str]]:
    commit, known = hub.files(source.repo, source.revision)
    prefix = "" if source.path == "." else f"{source.path}/"
    for name in source.wanted:
        if prefix + name not in known:
            raise BundleError(f"'{source.repo}' at {commit} has no file '{prefix + name}'")
    # By commit, not by revision: a branch may move between the two calls.
    folder = hub.download(source.repo, commit, [prefix + name for name in source.wanted])
    digests = {}
    for name in source.wanted:
        file = folder / (prefix + name)
        digest = _checked(file, known[prefix + name])
        if source.files and source.files.get(name) != digest:  # pulled before: the lock outranks the hub
            raise ChecksumError(f"{file} is not the file {LOCK} names (SHA-256 differs)")
        digests[name] = digest
    return commit, digests


def _checked(file: Path, expected: HubFile) -> str:
    """Returns the file's SHA-256, once it agrees with the hub's digest."""
    if not file.is_file():
        raise BundleError(f"{file} is missing after the download")
    digest = sha256(file)
    if expected.sha256 is not None:
        is_right = digest == expected.sha256
    elif expected.blob_id is not None:
        content = file.read_bytes()
        header = f"blob {len(content)}\0".encode()  # git's, see `HubFile`
        is_right = hashlib.sha1(header + content, usedforsecurity=False).hexdigest() == expected.blob_id
    else:
        raise BundleError(f"the hub gives no digest for {file.name}")
    if not is_right:
        raise ChecksumError(f"{file} is not the hub's file (digest differs): remove it and pull again")
    return digest
