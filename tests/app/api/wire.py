"""Raw connections to a server, as clients that do not keep to HTTP make them."""

import contextlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass

LIMIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RawAnswer:
    """What a server sent on a connection until it closed it, or until the response was complete."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_closed: bool

    @property
    def code(self) -> str:
        """The code of a problem document, "" of anything else."""
        if self.headers.get("content-type") != "application/problem+json":
            return ""
        return str(json.loads(self.body)["code"])


def connect(port: int, *, receive_bytes: int | None = None) -> socket.socket:
    """A connection; with `receive_bytes` its kernel takes little before a client reads."""
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(LIMIT_S)
    connection.connect(("127.0.0.1", port))
    return connection


def read_answer(connection: socket.socket) -> RawAnswer | None:
    """The next response, or None where the connection ends without one."""
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            part = connection.recv(65536)
        except ConnectionError:
            part = b""
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    length = int(headers.get("content-length", "0"))
    while len(body) < length and (part := connection.recv(65536)):
        body += part
    is_closed = headers.get("connection") == "close"
    return RawAnswer(status=int(lines[0].split()[1]), headers=headers, body=body, is_closed=is_closed)


def exchange(port: int, data: bytes) -> RawAnswer | None:
    """The first response to some bytes."""
    with connect(port) as connection:
        with contextlib.suppress(ConnectionError):  # refused while sending: the response is read all the same
            connection.sendall(data)
        return read_answer(connection)


def is_closed(connection: socket.socket) -> bool:
    """Wait until the server closes the connection; whatever it sends before is dropped."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True
