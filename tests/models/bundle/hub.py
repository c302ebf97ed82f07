"""A hub on 127.0.0.1 that speaks the file interface of the Hugging Face hub, with switches for its failures.

Large files are redirected to a file store on another host name (`localhost`), as on the real hub.
"""

import functools
import hashlib
import json
import mmap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "c" * 40
TOKEN = "hf_of_the_test"
LARGE_BYTES = 20_000  # larger files are "LFS" files: SHA-256, redirect


@dataclass(kw_only=True)
class Failures:
    """Switches; each is read with every request."""

    drop_after_bytes: int | None = None  # of a body
    drops: int = 10**9  # how many bodies are dropped
    damaged: set[str] = field(default_factory=set)  # names whose bytes are wrong
    damaged_times: int = 10**9
    bytes_per_second: float | None = None
    gated: bool = False  # files need a token of someone who accepted the terms
    private: bool = False  # everything needs a token
    status: int | None = None  # of every answer
    no_ranges: bool = False
    is_html: bool = False  # a captive portal


@dataclass(kw_only=True)
class LocalHub:
    """Repositories: name → folder; every revision in `revisions` is the commit `COMMIT`."""

    port: int
    repositories: dict[str, Path]
    revisions: set[str] = field(default_factory=lambda: {"main", COMMIT})
    failures: Failures = field(default_factory=Failures)
    requests: list[str] = field(default_factory=list)  # METHOD path [range]
    sent: dict[str, int] = field(default_factory=dict)  # file name → bytes sent

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def digests(file: Path) -> tuple[str | None, str]:
    """The hub's SHA-256 of a large file, and git's blob id (of the pointer, for a large file)."""
    return _digests(file, file.stat().st_mtime_ns)


@functools.cache
def _digests(file: Path, _changed_ns: int) -> tuple[str | None, str]:
    content = opened(file)
    if len(content) < LARGE_BYTES:
        return None, hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    return sha256, hashlib.sha1(f"blob {len(pointer)}\0".encode() + pointer).hexdigest()


def opened(file: Path) -> bytes | memoryview:
    """A file's bytes; those of gigabytes are not read before they are sent."""
    if file.stat().st_size < 1 << 24:
        return file.read_bytes()
    with file.open("rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client was killed
            super().handle()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        hub.requests.append(f"{self.command} {url.path} {self.headers.get('Range', '')}".strip())
        if hub.failures.status is not None:
            return self._refuse(hub.failures.status, "", "out of order")
        if hub.failures.is_html:
            return self._send(200, b"<html>please log in to this Wi-Fi</html>", {"Content-Type": "text/html"})
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "store":
            assert self.headers["Host"].startswith("localhost"), "the store has another host name"
            assert "Authorization" not in self.headers, "a token left the hub"
            return self._send_file(Path(unquote(url.query)), {})
        if len(parts) < 4:  # the client asks once for a list that concerns other commands
            return self._refuse(404, "", "Not found")
        is_info = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if is_info else parts[:2])
        revision = parts[5] if is_info else parts[3]
        has_token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo not in hub.repositories or (hub.failures.private and not has_token):
            return self._refuse(401, "RepoNotFound", "Invalid username or password.")
        if revision not in hub.revisions:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if is_info:
            return self._send_info(repo, with_blobs="blobs" in parse_qs(url.query))
        name = "/".join(parts[4:])
        file = hub.repositories[repo] / name
        if hub.failures.gated and not has_token:
            return self._refuse(401, "GatedRepo", f"Access to model {repo} is restricted.")
        if not file.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found")
        sha256, blob_id = digests(file)
        size = file.stat().st_size
        if sha256 is None:
            return self._send_file(file, {"ETag": f'"{blob_id}"', "X-Repo-Commit": COMMIT})
        headers = {"X-Repo-Commit": COMMIT, "X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(size)}
        location = f"http://localhost:{hub.port}/store/{sha256}?{quote(str(file))}"
        return self._send(302, b"", headers | {"Location": location, "Accept-Ranges": "bytes"})

    def _send_info(self, repo: str, *, with_blobs: bool) -> None:
        siblings: list[dict[str, object]] = []
        folder = self.hub.repositories[repo]
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            entry: dict[str, object] = {"rfilename": file.relative_to(folder).as_posix()}
            if with_blobs:
                sha256, blob_id = digests(file)
                entry |= {"size": file.stat().st_size, "blobId": blob_id}
                if sha256 is not None:
                    entry["lfs"] = {"sha256": sha256, "size": file.stat().st_size, "pointerSize": 130}
            siblings.append(entry)
        info = {"_id": "0", "id": repo, "modelId": repo, "sha": COMMIT, "private": False, "siblings": siblings}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _send_file(self, file: Path, headers: dict[str, str]) -> None:
        failures, content = self.hub.failures, opened(file)
        if file.name in failures.damaged and failures.damaged_times > 0:
            failures.damaged_times -= 1
            content = bytes([content[0] ^ 1]) + bytes(content[1:])
        wanted = self.headers.get("Range")
        if wanted is None or failures.no_ranges:
            return self._send(200, content, headers, name=file.name)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return self._send(206, content[start:], headers | span, name=file.name)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, content: bytes | memoryview, headers: dict[str, str], *, name: str = "") -> None:
        failures = self.hub.failures
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(content)
        if name and failures.drop_after_bytes is not None and failures.drops > 0 and end > failures.drop_after_bytes:
            failures.drops -= 1
            end = failures.drop_after_bytes
        step = 1 << 20 if failures.bytes_per_second is None else max(1, int(failures.bytes_per_second / 50))
        for at in range(0, end, step):
            block = content[at : min(at + step, end)]
            try:
                self.wfile.write(block)
            except OSError:  # the client was killed
                break
            if name:
                self.hub.sent[name] = self.hub.sent.get(name, 0) + len(block)
            if failures.bytes_per_second is not None:
                time.sleep(len(block) / failures.bytes_per_second)
        self.close_connection = self.close_connection or end < len(content)


@contextmanager
def local_hub(repositories: dict[str, Path]) -> Iterator[LocalHub]:
    """Serves repositories while the context is open."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = LocalHub(port=server.server_address[1], repositories=repositories)
    server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
