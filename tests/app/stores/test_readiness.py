"""`/readyz` over a socket while PostgreSQL stops, hangs, or cannot be reached, and when it is back."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.app.postgres import PostgresServer, running_postgres
from tests.app.test_server import started

pytestmark = pytest.mark.server
NOTICED_S = 2.0


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """One that may be stopped."""
    with running_postgres() as server:
        yield server


class Relay:
    """A host between service and database that can stop forwarding, as a network does, without closing."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.may_pass = threading.Event()
        self.may_pass.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def close(self) -> None:
        self.may_pass.set()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes the threads
            one.close()
        for thread in self._threads:
            thread.join(10)

    def _run(self, target: Callable[..., None], *args: socket.socket) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:  # the database is stopped: the next connection may find it again
                    near.close()
                    continue
                self._sockets.append(far)
                for pair in ((near, far), (far, near)):
                    self._run(self._forward, *pair)

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.may_pass.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def until(client: httpx.Client, status: int, within_s: float) -> httpx.Response:
    began_s = time.monotonic()
    while True:
        answer = client.get("/readyz")
        took_s = time.monotonic() - began_s
        if answer.status_code == status:
            return answer
        assert took_s < within_s, f"{answer.status_code} after {took_s:.1f} s"
        time.sleep(0.1)


@pytest.mark.parametrize("how", ["paused", "unreachable", "stopped"])
def test_ready_ends_within_two_seconds_of_the_database_leaving(
    tmp_path: Path, own_postgres: PostgresServer, how: str
) -> None:
    url = own_postgres.new_database()
    relay = Relay(own_postgres.port)
    through = url.replace(f":{own_postgres.port}/", f":{relay.port}/").replace("postgres@", "postgres:secret@")
    with started("free", tmp_path, DATABASE_URL=through) as process, process.connect() as client:
        process.wait_for("ready")
        assert client.get("/readyz").status_code == 200
        if how == "paused":
            pids = own_postgres.pids()
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        elif how == "unreachable":
            relay.may_pass.clear()
        else:
            own_postgres.stop()
        gone = until(client, 503, NOTICED_S)
        assert gone.json()["detail"] == "The database does not answer."
        assert "secret" not in gone.text
        assert client.get("/livez").status_code == 200
        if how == "paused":
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        elif how == "unreachable":
            relay.may_pass.set()
        else:
            own_postgres.start()
        until(client, 200, 15)
    relay.close()
