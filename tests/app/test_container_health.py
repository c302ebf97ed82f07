"""The container's health check asks the address that is set, and no proxy."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker" / "health.py"


class Handler(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/livez" else 404)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def answering(host: str, status: int) -> Iterator[int]:
    """A port on which a server answers `/livez`."""

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    with Server((host, 0), type("Of", (Handler,), {"status": status})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def exit_code(**variables: str) -> int:
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")  # nobody listens there
    command = [sys.executable, "-S", str(SCRIPT)]
    return subprocess.run(
        command, env={**os.environ, **proxies, **variables}, stderr=subprocess.DEVNULL, check=False
    ).returncode


@pytest.mark.parametrize(
    ("listens", "configured"),
    [("127.0.0.1", "0.0.0.0"), ("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("::1", "::"), ("::1", "::1")],
)
def test_the_configured_address_is_asked(listens: str, configured: str) -> None:
    if ":" in listens and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with answering(listens, 200) as port:
        assert exit_code(VERMOUTH_HOST=configured, VERMOUTH_PORT=str(port)) == 0
    assert exit_code(VERMOUTH_HOST=configured, VERMOUTH_PORT=str(port)) != 0


def test_a_process_that_must_be_restarted_is_unhealthy() -> None:
    with answering("127.0.0.1", 503) as port:
        assert exit_code(VERMOUTH_HOST="0.0.0.0", VERMOUTH_PORT=str(port)) == 1
