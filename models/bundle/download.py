"""Downloads files of a hub into the Hugging Face cache: resumed after a kill, verified, one sentence an error.

The client's own download starts again from nothing after a kill (docs/adr/0049), so only its listing, its session
(proxies, token) and its cache layout are used: `models--OWNER--NAME/blobs/ETAG`, linked from `snapshots/COMMIT/NAME`.
"""

import errno
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status

from models.bundle.files import repository_folder, sha256
from models.errors import BundleError, ChecksumError

MAX_FAILURES = 5  # attempts in a row that brought no byte
_HEX = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")  # SHA-1 or SHA-256
_LOGIN = "log in with `hf auth login` or set HF_TOKEN, and pull again"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository at a commit, as the hub lists it.

    Attributes:
        name: path in the repository.
        sha256: of a large file; None for one that git holds.
        blob_id: git's, the SHA-1 of a header and the content.
    """

    repo: str
    commit: str
    name: str
    size_bytes: int
    sha256: str | None
    blob_id: str | None

    @property
    def blob(self) -> Path:
        """The file's content in the cache, shared by all commits that have it."""
        return repository_folder(self.repo) / "blobs" / str(self.sha256 or self.blob_id)

    @property
    def partial(self) -> Path:
        """The bytes of an unfinished download."""
        return self.blob.with_name(f"{self.blob.name}.incomplete")

    @property
    def path(self) -> Path:
        """Where readers find the file."""
        return repository_folder(self.repo) / "snapshots" / self.commit / self.name

    def matches(self, file: Path) -> bool:
        """Returns whether a file exists and has this file's size and digest."""
        if not file.is_file() or file.stat().st_size != self.size_bytes:
            return False
        if self.sha256 is not None:
            return sha256(file) == self.sha256
        content = file.read_bytes()  # git holds small files only
        header = f"blob {len(content)}\0".encode()
        return hashlib.sha1(header + content, usedforsecurity=False).hexdigest() == self.blob_id

    def missing_bytes(self) -> int:
        """Returns how many bytes are left to download, 0 for a file whose content is in the cache and verified."""
        if self.matches(self.path) or self.matches(self.blob):
            return 0
        started = self.partial.stat().st_size if self.partial.is_file() else 0
        return self.size_bytes - started if started <= self.size_bytes else self.size_bytes


def list_files(repo: str, revision: str) -> tuple[str, Mapping[str, HubFile]]:
    """Returns the commit of a revision, and every file in it by name.

    Raises:
        BundleError: the hub cannot be reached, refuses, or gives no commit, size or digest.
    """
    with explained(repo, revision):
        timeout = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
    commit, files = info.sha or "", {}
    if not _HEX.fullmatch(commit):
        raise BundleError(f"the hub names no commit for '{repo}' at {revision}")
    for entry in info.siblings or []:
        digest = entry.lfs.sha256 if entry.lfs else None
        # Digests become file names here: nothing else may come in their place.
        if entry.size is None or not _HEX.fullmatch(digest or entry.blob_id or ""):
            raise BundleError(f"the hub gives no size or no digest for '{entry.rfilename}' of '{repo}'")
        files[entry.rfilename] = HubFile(
            repo=repo, commit=commit, name=entry.rfilename, size_bytes=entry.size, sha256=digest, blob_id=entry.blob_id
        )
    return commit, files


def fetch(file: HubFile, advance: Callable[[int], None], *, wait_s: float = 1.0) -> None:
    """Brings a file into the cache, from the first byte that is missing; other processes that want it wait.

    Args:
        file: what to download.
        advance: called with each number of bytes that arrived; negative where bytes were discarded.
        wait_s: pause after the first failure; it doubles with each further one.

    Raises:
        ChecksumError: the hub sent other bytes than it lists, twice.
        BundleError: the download failed, or the disk is full or not writable.
    """
    with explained(file.repo, file.commit, file):
        locks = Path(constants.HF_HUB_CACHE) / ".locks" / repository_folder(file.repo).name
        for folder in (locks, file.blob.parent, file.path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(locks / f"{file.blob.name}.lock"):  # the client's own lock
            if file.matches(file.path):
                return
            if not file.matches(file.blob):
                _fetch_blob(file, advance, wait_s)
            _link(file)


def _fetch_blob(file: HubFile, advance: Callable[[int], None], wait_s: float) -> None:
    for _ in range(2):  # bytes may have been damaged on the way, or on the disk while the download was paused
        _download(file, advance, wait_s)
        if file.matches(file.partial):
            with file.partial.open("rb") as opened:
                os.fsync(opened.fileno())
            file.partial.replace(file.blob)
            return
        advance(-file.partial.stat().st_size)
        file.partial.unlink()
    raise ChecksumError(
        f"the hub sends other bytes than it lists for '{file.name}' of '{file.repo}' (fetched twice, the digest "
        "differs): nothing of it was stored, try again later"
    )


def _download(file: HubFile, advance: Callable[[int], None], wait_s: float) -> None:
    """Appends the missing bytes to the partial file, and connects again as long as bytes arrive."""
    failures = 0
    file.partial.touch()
    while (before := file.partial.stat().st_size) < file.size_bytes:
        failure: Exception = httpx2.RemoteProtocolError("the connection was closed early")
        try:
            _append(file, before, advance)
        except httpx2.TransportError as err:
            failure = err
        except HfHubHTTPError as err:
            if err.response.status_code < 500:
                raise
            failure = err
        after = file.partial.stat().st_size
        failures = 0 if after > before else failures + 1
        if failures == MAX_FAILURES:
            raise failure
        if after < file.size_bytes:
            time.sleep(wait_s * 2**failures)


def _append(file: HubFile, start: int, advance: Callable[[int], None]) -> None:
    # Compressed text would have neither a known length nor ranges.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    url = f"{constants.ENDPOINT}/{file.repo}/resolve/{file.commit}/{quote(file.name)}"
    timeout = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    # The session follows the redirect to the file store and drops the token where the host differs.
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        if response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            hf_raise_for_status(response)
        with file.partial.open("ab", buffering=0) as opened:
            if start and response.status_code != HTTPStatus.PARTIAL_CONTENT:  # no ranges: from the beginning
                opened.truncate(0)
                advance(-start)
                start = 0
            if response.is_error:
                return
            for chunk in response.iter_bytes():  # as they arrive: a kill loses none
                opened.write(chunk)
                advance(len(chunk))
                start += len(chunk)
                if start > file.size_bytes:
                    return  # never the right digest


def _link(file: HubFile) -> None:
    """Puts the verified content where readers look for it."""
    temporary = file.path.with_name(f".{file.path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(file.blob, file.path.parent))
    except OSError:  # no links on this file system; the client stores files in the snapshot there too
        file.blob.replace(file.path)
    else:
        temporary.replace(file.path)


@contextmanager
def explained(repo: str, revision: str, file: HubFile | None = None) -> Iterator[None]:
    """Turns every failure of a request or of the disk into a BundleError with one sentence."""
    hub = constants.ENDPOINT
    try:
        yield
    except OfflineModeIsEnabled as err:
        raise BundleError(f"'{repo}' is not complete in the cache and HF_HUB_OFFLINE is set: unset it to pull") from err
    except GatedRepoError as err:
        raise BundleError(f"'{repo}' is gated: accept its terms at {hub}/{repo}, {_LOGIN}") from err
    except RepositoryNotFoundError as err:
        raise BundleError(f"{hub} has no '{repo}', or it is private: correct the name, or {_LOGIN}") from err
    except RevisionNotFoundError as err:
        raise BundleError(f"'{repo}' has no revision '{revision}'") from err
    except EntryNotFoundError as err:
        raise BundleError(f"'{repo}' at {revision} has no file '{file.name if file else ''}'") from err
    except HfHubHTTPError as err:
        _explain_status(err, repo)
    except HFValidationError as err:
        raise BundleError(f"'{repo}' is not a repository: write OWNER/NAME") from err
    except httpx2.TimeoutException as err:
        seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
        raise BundleError(f"{hub} did not answer within {seconds} s: try again, what has arrived is stored") from err
    except httpx2.TransportError as err:
        _explain_transport(err)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as err:
        raise BundleError(f"the answer of {hub} cannot be read: is a proxy in between, is HF_ENDPOINT right?") from err
    except OSError as err:
        _explain_disk(err)


def _explain_status(err: HfHubHTTPError, repo: str) -> NoReturn:
    status = err.response.status_code
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise BundleError(f"the hub refuses access to '{repo}' (status {status}): {_LOGIN}") from err
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise BundleError("the hub limits the number of requests (status 429): wait a few minutes") from err
    raise BundleError(f"the hub answers '{repo}' with status {status}: try again later") from err


def _explain_transport(err: httpx2.TransportError) -> NoReturn:
    hub = constants.ENDPOINT
    cause: BaseException | None = err
    while cause is not None:  # the system's own error lies at the bottom
        if isinstance(cause, ConnectionRefusedError):
            raise BundleError(f"{hub} refuses the connection: is HF_ENDPOINT or the proxy right?") from err
        if isinstance(cause, socket.gaierror) or (isinstance(cause, OSError) and cause.errno in _NO_ROUTE):
            raise BundleError(f"{hub} cannot be reached: this machine seems to be offline") from err
        cause = cause.__cause__ or cause.__context__
    raise BundleError(f"the connection broke ({err}): pull again, what has arrived is stored") from err


def _explain_disk(err: OSError) -> NoReturn:
    where = err.filename or constants.HF_HUB_CACHE
    if err.errno in _DISK_FULL:
        raise BundleError(
            f"the disk of {constants.HF_HUB_CACHE} is full: free some space or set HF_HOME, and pull again; what has "
            "arrived is stored"
        ) from err
    if err.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise BundleError(f"{where} is not writable: set HF_HOME to a folder that is") from err
    raise BundleError(f"{where}: {err.strerror or err}") from err
