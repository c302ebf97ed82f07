"""A server over a socket that answers as a test says: as a proxy, as a service that is full, or not to the end."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request that waits for its answer."""

    protocol_version = "HTTP/1.1"
    body = b""

    def send(self, status: int, body: Any, kind: str = "application/json", **headers: str) -> None:
        """Answer with bytes, or with JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status: int, code: str, **headers: str) -> None:
        """Answer with a problem document."""
        problem = {"status": status, "code": code, "detail": f"Why {status}."}
        self.send(status, problem, "application/problem+json", **headers)

    def written(self) -> None:
        """Answer that every item of the body was created."""
        self.send(200, {"seq": 1, "results": [{"id": item["id"], "status": "created"} for item in self.items()]})

    def items(self) -> list[dict[str, Any]]:
        """The items of the body, of a form without their images."""
        if self.headers["Content-Type"] == "application/json":
            return json.loads(self.body)  # type: ignore[no-any-return]
        part = re.search(rb'name="items"\r\n\r\n(.*?)\r\n--', self.body, re.DOTALL)
        assert part is not None
        return json.loads(part[1])  # type: ignore[no-any-return]

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def scripted(answer: Answer) -> Iterator[str]:
    """The address of a server whose every request `answer` answers, each in its own thread."""

    def handle(request: Request) -> None:
        request.body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        answer(request)

    methods = dict.fromkeys(("do_GET", "do_POST", "do_PUT", "do_PATCH", "do_DELETE"), handle)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Request,), methods)) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
