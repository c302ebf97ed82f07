"""A PostgreSQL server of the tests' own: a temporary folder, a spare port, gone afterwards."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

START_S = 60


class PostgresServer:
    """A running server; every test asks for a database of its own."""

    def __init__(self, port: int, launch: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.port = port
        self._launch = launch
        self.process = launch()

    def start(self) -> None:
        """Start it again after `stop`, with its databases."""
        self.process = self._launch()

    def stop(self) -> None:
        """Stop it at once, with clients connected or not."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=START_S)

    def pids(self) -> list[int]:
        """All its processes."""
        own = self.process.pid
        return [own, *map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())]

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
        return self._url(name)

    def drop(self, url: str) -> None:
        """Remove a database, with clients connected or not."""
        name = url.rsplit("/", 1)[1]
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Start Debian's `postgresql` and stop it in the end; skips where there is none."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    # PostgreSQL refuses to run as root.
    user = pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="vermouth-postgres-"))
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    with socket.create_server(("127.0.0.1", 0)) as spare:
        port = spare.getsockname()[1]
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(initdb, check=True, user=user, cwd="/", env=environment, stdout=subprocess.DEVNULL)
    # It is never killed itself, so what it says is on disk need not be.
    options = ["-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-c", "fsync=off", "-c", "max_connections=200"]
    log = (folder / "log").open("wb")
    command = [str(binaries / "postgres"), "-D", str(data), *options]

    def launch() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, user=user, cwd="/", env=environment, stdout=log, stderr=log)
        _wait_until_ready(process, port, folder / "log")
        return process

    server = PostgresServer(port, launch)
    try:
        yield server
    finally:
        server.stop()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until_s = time.monotonic() + START_S
    while True:
        try:
            psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres", connect_timeout=1).close()
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.05)
        else:
            return


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return Path(found).resolve().parent if found else next(iter(folders), None)
