"""What is not HTTP, or too much of it, is answered by a problem document, over real connections."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from app.api.transport.connections import Connection, ConnectionLimits, Connections
from app.runtime.telemetry import Telemetry
from tests.app.api.served import LIMIT_S, new_app, served, set_soon
from tests.app.api.wire import RawAnswer, connect, exchange, is_closed, read_answer
from tests.app.fakes import FakeEncoder

pytestmark = pytest.mark.anyio
Held = Callable[[socket.socket], AbstractAsyncContextManager[None]]
HOST = b"Host: test\r\n"
CHUNKED = b"POST /embed HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n"
SHORT = ConnectionLimits(
    max_connections=64, keep_alive_s=0.4, header_timeout_s=0.2, grace_s=0.2, linger_s=0.1, sweep_s=0.05
)
REFUSED = {
    "unknown method": (b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "method in lower case": (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "connect": (b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "garbage": (b"\x00\x01\x02\xff" * 9, 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "version 3": (b"GET / HTTP/3.0\r\n" + HOST + b"\r\n", 505),
    "version 2": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "version 0.9": (b"GET /livez\r\n\r\n", 505),
    "preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "no such protocol": (b"GET / HTTX/1.1\r\n" + HOST + b"\r\n", 400),
    "header without colon": (b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n", 400),
    "space before colon": (b"GET / HTTP/1.1\r\nHost : test\r\n\r\n", 400),
    "NUL in a value": (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x00c\r\n\r\n", 400),
    "continued header": (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n", 400),
    "bare line feeds": (b"GET / HTTP/1.1\nHost: test\n\n", 400),
    "space in the target": (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "bytes above ASCII in the target": (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "no Host": (b"GET /livez HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (b"GET /livez HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "two lengths": (b"POST /embed HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "length and chunks": (CHUNKED[:-2] + b"Content-Length: 1\r\n\r\n0\r\n\r\n", 400),
    "length below zero": (b"POST /embed HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
    "length without end": (b"POST /embed HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n", 400),
    "another coding": (CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n", 501),
    "chunks in HTTP/1.0": (CHUNKED.replace(b"/1.1", b"/1.0") + b"0\r\n\r\n", 501),
    "a size that is none": (CHUNKED + b"zz\r\n\r\n", 400),
    "a size without end": (CHUNKED + b"f" * 17 + b"\r\n\r\n", 400),
    "a chunk longer than its size": (CHUNKED + b"1\r\nabc\r\n0\r\n\r\n", 400),
    "one header of a megabyte": (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"a" * (1 << 20), 431),
    "a thousand headers": (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 1000 + b"\r\n", 431),
    "headers of 90 KiB": (b"GET / HTTP/1.1\r\n" + HOST + (b"A: " + b"a" * 9000 + b"\r\n") * 10 + b"\r\n", 431),
    "a target of 60 KiB": (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "a chunk extension of a megabyte": (CHUNKED + b"1;a=" + b"b" * (1 << 20), 400),
    "a trailer of a megabyte": (CHUNKED + b"1\r\nx\r\n0\r\nA: " + b"b" * (1 << 20), 400),
}
CODES = {
    400: "malformed",
    414: "target-too-long",
    431: "headers-too-large",
    501: "not-implemented",
    505: "version-not-supported",
}


async def test_what_is_not_http_is_answered_by_a_problem(tmp_path: Path) -> None:
    async with served(new_app(FakeEncoder(), tmp_path), SHORT) as port:
        found = {name: await asyncio.to_thread(exchange, port, data) for name, (data, _) in REFUSED.items()}
        healthy = await asyncio.to_thread(exchange, port, GET)
    assert healthy is not None
    assert healthy.status == 200
    answers = {name: answer for name, answer in found.items() if answer is not None}
    reported = {name: (answer.status, answer.code) for name, answer in answers.items()}
    assert reported == {name: (status, CODES[status]) for name, (_, status) in REFUSED.items()}
    assert all(answer.is_closed and len(answer.headers["x-request-id"]) == 32 for answer in answers.values())


@pytest.fixture(params=[1, 7])
def torn(request: pytest.FixtureRequest) -> Callable[[int, bytes], RawAnswer | None]:
    """As `exchange`, in pieces."""
    size: int = request.param

    def exchange_torn(port: int, data: bytes) -> RawAnswer | None:
        with connect(port) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(data), size):
                connection.sendall(data[start : start + size])
            return read_answer(connection)

    return exchange_torn


async def test_a_request_in_pieces(tmp_path: Path, torn: Callable[[int, bytes], RawAnswer | None]) -> None:
    body = b'{"texts": ["cat"]}'
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (1, body[at : at + 1]) for at in range(len(body)))
    async with served(new_app(FakeEncoder(), tmp_path), SHORT) as port:
        answer = await asyncio.to_thread(torn, port, CHUNKED + chunks + b"0\r\nX-Trailer: a\r\n\r\n")
        assert answer is not None
        assert answer.status == 200


async def test_trailers_change_nothing(tmp_path: Path) -> None:
    app = new_app(FakeEncoder(), tmp_path)
    body = b'{"texts": ["cat"]}'
    async with served(app, SHORT) as port:
        data = CHUNKED + b"%x\r\n%b\r\n0\r\nX-Request-Timeout-Ms: no number\r\n\r\n" % (len(body), body)
        answer = await asyncio.to_thread(exchange, port, data)
        assert answer is not None
        assert answer.status == 200


async def test_pipelined_requests_are_answered_in_order_and_bounded(tmp_path: Path) -> None:
    def statuses(port: int, count: int) -> list[int]:
        with connect(port) as connection:
            connection.sendall(GET * (count - 1) + GET[:-2] + b"Connection: close\r\n\r\n")
            data = b""
            while part := connection.recv(65536):
                data += part
        return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]

    async with served(new_app(FakeEncoder(), tmp_path), SHORT) as port:
        assert await asyncio.to_thread(statuses, port, 10) == [200] * 10
        found = await asyncio.to_thread(statuses, port, 5000)
        assert found == [200] * (len(found) - 1) + [429]
        assert len(found) == 18, "one that runs, 16 that wait, and the refusal"


async def test_what_is_wrong_is_answered_after_the_requests_before_it(tmp_path: Path) -> None:
    def statuses(port: int) -> bytes:
        with connect(port) as connection:
            connection.sendall(GET + GET + b"GET / HTTX/1.1\r\n\r\n")
            data = b""
            while part := connection.recv(65536):
                data += part
        return b" ".join(part[:3] for part in data.split(b"HTTP/1.1 ")[1:])

    async with served(new_app(FakeEncoder(), tmp_path), SHORT) as port:
        assert await asyncio.to_thread(statuses, port) == b"200 200 400"


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[tuple[int, Held]]:
    """A port, and a context that holds one request on a connection in its pass until the context ends."""
    encoder, loop = FakeEncoder(), asyncio.get_running_loop()

    @contextlib.asynccontextmanager
    async def hold(connection: socket.socket) -> AsyncIterator[None]:
        entered = asyncio.Event()
        encoder.entered = lambda: set_soon(loop, entered)
        encoder.gate.clear()
        body = b'{"texts": ["cat"]}'
        connection.sendall(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        try:
            yield
            await asyncio.sleep(3 * SHORT.header_timeout_s)
        finally:
            encoder.gate.set()

    async with served(new_app(encoder, tmp_path), SHORT) as port:
        yield port, hold


def statuses_until_the_end(connection: socket.socket) -> list[int]:
    data = b""
    while part := connection.recv(65536):
        data += part
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


async def test_a_refusal_that_waits_for_its_turn_is_not_timed_out(held: tuple[int, Held]) -> None:
    port, hold = held
    with connect(port) as connection:
        async with hold(connection):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost : test\r\n")
        assert await asyncio.to_thread(statuses_until_the_end, connection) == [200, 400]


async def test_a_client_that_the_server_does_not_read_is_not_late(held: tuple[int, Held]) -> None:
    port, hold = held
    with connect(port) as connection:
        async with hold(connection):
            connection.sendall(GET + GET[:9])
            await asyncio.sleep(0.1)  # read alone, if the server is quick
            connection.sendall(GET[9:-2] + b"Connection: close\r\n\r\n")
        assert await asyncio.to_thread(statuses_until_the_end, connection) == [200, 200, 200]


async def test_headers_are_not_counted_for_the_request_behind_them(tmp_path: Path) -> None:
    def statuses(port: int) -> list[int]:
        body = b'{"texts": ["cat"]}'
        large = CHUNKED.replace(b"Transfer-Encoding: chunked\r\n", (b"A: " + b"a" * 6000 + b"\r\n") * 10)
        expected = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        with connect(port) as connection:
            connection.sendall(large[:-2] + expected)
            found = [read_answer(connection)]  # the headers were read
            connection.sendall(body + GET[:-2] + b"A: " + b"a" * 6000)
            found.append(read_answer(connection))
            connection.sendall(b"\r\n\r\n")
            found.append(read_answer(connection))
        return [answer.status for answer in found if answer is not None]

    async with served(new_app(FakeEncoder(), tmp_path)) as port:
        assert await asyncio.to_thread(statuses, port) == [100, 200, 200]


async def test_a_check_that_fails_ends_its_connection_and_no_other() -> None:
    register = Connections(SHORT, Telemetry())
    checked = asyncio.Semaphore(0)

    class Checked:
        def check(self, elapsed_s: float) -> None:
            del elapsed_s
            checked.release()

        def abort(self) -> None:
            register.remove(self)

    class Failing(Checked):
        def check(self, elapsed_s: float) -> None:
            del elapsed_s
            raise RuntimeError

    connections: list[Connection] = [Failing(), *(Checked() for _ in range(3)), Failing()]
    for connection in connections:
        register.admit(connection)
    for _ in range(2 * 3):
        await asyncio.wait_for(checked.acquire(), LIMIT_S)
    assert len(register) == 3
    for connection in connections:
        register.remove(connection)


@pytest.mark.parametrize(
    "start",
    [
        b"GET /livez HTTP/1.1\r\nHost: te",
        CHUNKED + b"2\r\na",
        CHUNKED.replace(b"Transfer-Encoding: chunked", b"Content-Length: 9") + b"{",
    ],
    ids=["headers", "a chunk", "a body"],
)
async def test_a_client_that_stops_in_the_middle_gets_408(tmp_path: Path, start: bytes) -> None:
    async with served(new_app(FakeEncoder(), tmp_path), SHORT) as port:
        answer = await asyncio.to_thread(exchange, port, start)
        assert answer is not None
        assert (answer.status, answer.code, answer.is_closed) == (408, "request-timeout", True)


@pytest.mark.parametrize("first", [b"", GET, b"\r\n\r\n"], ids=["silent", "after a response", "empty lines"])
async def test_an_idle_connection_is_closed(tmp_path: Path, first: bytes) -> None:
    def close(port: int) -> bool:
        with connect(port) as connection:
            connection.sendall(first)
            return is_closed(connection)

    async with served(new_app(FakeEncoder(), tmp_path), SHORT) as port:
        assert await asyncio.to_thread(close, port)


async def test_silent_connections_shut_nobody_out(tmp_path: Path) -> None:
    def statuses(port: int) -> list[int]:
        with contextlib.ExitStack() as stack:
            second = stack.enter_context(connect(port))
            second.sendall(GET)
            found = [read_answer(second)]
            for _ in range(40):
                stack.enter_context(connect(port))
            found.append(exchange(port, GET))
            # What has had a request outlives what never had one.
            second.sendall(GET)
            found.append(read_answer(second))
        return [answer.status for answer in found if answer is not None]

    limits = ConnectionLimits(max_connections=8, keep_alive_s=30)
    async with served(new_app(FakeEncoder(), tmp_path), limits) as port:
        assert await asyncio.to_thread(statuses, port) == [200, 200, 200]


async def test_above_the_limit_health_alone_is_served(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    entered, loop = asyncio.Event(), asyncio.get_running_loop()
    post = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n"
    body = b'{"texts": ["cat"]}'
    async with served(new_app(encoder, tmp_path), ConnectionLimits(max_connections=1, keep_alive_s=30)) as port:
        encoder.entered = lambda: set_soon(loop, entered)
        encoder.gate.clear()
        held = asyncio.create_task(asyncio.to_thread(exchange, port, post % (len(body), body)))
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        health = await asyncio.to_thread(exchange, port, GET)
        other = await asyncio.to_thread(exchange, port, GET.replace(b"livez", b"galleries"))
        encoder.gate.set()
        answer = await held
    assert [one.status for one in (health, other, answer) if one is not None] == [200, 503, 200]


async def test_a_live_search_has_its_own_bounds(tmp_path: Path) -> None:
    shake = (
        b"GET /retrieve/live HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )

    def statuses(port: int) -> list[int]:
        found = [
            exchange(port, shake + b"\r\n"),
            exchange(port, shake + b"A: " + b"a" * 9000 + b"\r\n\r\n"),
            exchange(port, shake.replace(b"GET", b"POST") + b"\r\n"),
        ]
        return [answer.status for answer in found if answer is not None]

    async with served(new_app(FakeEncoder(), tmp_path), SHORT) as port:
        assert await asyncio.to_thread(statuses, port) == [101, 431, 400]
