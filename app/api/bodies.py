"""Reads request bodies, bounded and decoded, as strict JSON or multipart forms into wire models and files."""

import asyncio
import contextlib
import zlib
from collections.abc import Callable, Collection, Hashable
from functools import cache, partial
from typing import Any, ParamSpec, TypeVar, cast

from pydantic import TypeAdapter
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.forms import Form, Names, read_form
from app.api.middleware import HttpLayer
from app.api.problems import problem_response
from app.api.strict_json import JSON, parse_json
from app.domain import Limits
from app.errors import BodyTooLarge, FieldError, Invalid, Malformed, UnsupportedCoding, UnsupportedMedia
from app.stores.filters import Filter, parse_filter

P = ParamSpec("P")
T = TypeVar("T")
Shape = TypeVar("Shape")

CODINGS = ("gzip", "deflate")
LINGER_S = 2.0
"""How long the rest of a refused body is read and dropped before the connection closes."""
_CODINGS: dict[str, int | None] = {
    "identity": None,
    "": None,
    "gzip": zlib.MAX_WBITS + 16,
    "x-gzip": zlib.MAX_WBITS + 16,
    "deflate": zlib.MAX_WBITS,
}
"""Content codings and zlib's code of their format; RFC 9110's "deflate" has zlib's header."""
_PIECE_BYTES = 256 << 10  # half a millisecond
_MULTIPART = "multipart/form-data"
_LARGE_BYTES = 64 * 1024  # handled off the event loop from here on: about a millisecond


class BodyLimit(HttpLayer):
    """Counts the body while it streams in, so that a chunked one is bounded too, and decodes a compressed one.

    The limit holds for the bytes that are sent and for those that they decode to.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        super().__init__(app)
        self._max_body_bytes = max_body_bytes

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = HTTPConnection(scope).headers
        declared, coding = (
            headers.get("content-length", "0"),
            headers.get("content-encoding", "identity").strip().lower(),
        )
        if not declared.isdigit() or int(declared) > self._max_body_bytes:
            await self._refuse_and_close(scope, receive, send)
            return
        if coding not in _CODINGS:
            raise UnsupportedCoding(f"A body may be sent plain, or compressed as {' or '.join(CODINGS)}.")
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise _too_large(self._max_body_bytes)
            return message

        wbits = _CODINGS[coding]
        plain = receive_counted if wbits is None else _Inflated(receive_counted, wbits, self._max_body_bytes)
        await self.app(scope, plain, send)

    async def _refuse_and_close(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 while the body still arrives, then read on for `LINGER_S` and close the connection.

        A client that is still sending when the connection closes sees a reset instead of the response (RFC 9112, 9.6).
        """

        async def send_open(message: Message) -> None:
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        response = problem_response(_too_large(self._max_body_bytes), HTTPConnection(scope))
        response.headers["Connection"] = "close"
        await response(scope, receive, send_open)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b""})


class _Inflated:
    """Receives a compressed body as the messages of its content, in pieces that do not hold the event loop up."""

    def __init__(self, receive: Receive, wbits: int, max_bytes: int) -> None:
        self._receive = receive
        self._inflate = zlib.decompressobj(wbits)
        self._max_bytes = max_bytes
        self._waiting = b""  # received and not decoded
        self._n_bytes = 0
        self._has_all = self._is_done = False

    async def __call__(self) -> Message:
        """The next message; a disconnect passes through. Raises BodyTooLarge, Malformed."""
        while not self._is_done:
            if not self._waiting and not self._has_all:
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._waiting, self._has_all = message.get("body", b""), not message.get("more_body", False)
            piece = self._next_piece()
            if piece or self._is_done:
                await asyncio.sleep(0)  # a request that waits for no packet would run to the end of its body
                return {"type": "http.request", "body": piece, "more_body": not self._is_done}
        return await self._receive()

    def _next_piece(self) -> bytes:
        try:
            piece = self._inflate.decompress(self._waiting, _PIECE_BYTES)
        except zlib.error as err:
            raise Malformed("The body is not compressed as its Content-Encoding says.") from err
        self._waiting = self._inflate.unconsumed_tail
        self._n_bytes += len(piece)
        if self._n_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        # A full piece may leave content inside, though all of the input is read.
        if self._has_all and not self._waiting and len(piece) < _PIECE_BYTES:
            if not self._inflate.eof or self._inflate.unused_data:
                raise Malformed("The compressed body is cut short, or goes on after its end.")
            self._is_done = True
        return piece


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"A request body may hold {max_bytes} bytes.")


async def read_body(
    request: Request,
    shape: type[Shape],
    convert: Callable[[Shape | Form, Limits], T],
    limits: Limits,
    *,
    files: Collection[str],
    texts: Names,
) -> T:
    """What `convert` makes of the body, which is `shape` as JSON, or a multipart form.

    Args:
        convert: runs in the wire thread where the body is large.
        files, texts: names of a form's fields, as in `read_form`.

    Raises:
        As `read_json`, `read_form` and `convert`.
    """
    if _content_type(request, JSON, _MULTIPART) == _MULTIPART:
        form = await read_form(request, limits, files, texts)
        return await run_if_large(request, form.text_length, convert, form, limits)
    body = await request.body()
    return await run_if_large(request, len(body), lambda: convert(_validated(body, shape, limits), limits))


async def read_json(request: Request, shape: type[T], limits: Limits, *media_types: str) -> T:
    """The JSON body as `shape`; types are strict, so that "1" is no number.

    Args:
        media_types: those allowed beside `application/json`.

    Raises:
        UnsupportedMedia: the body is of another type.
        Malformed: it is not JSON.
        Invalid: it holds NaN, infinity or NUL.
        TooMuchWork: it holds too many values.
        pydantic.ValidationError: it is not of the shape.
    """
    _content_type(request, JSON, *media_types)
    body = await request.body()
    return await run_if_large(request, len(body), _validated, body, shape, limits)


async def run_if_large(
    connection: HTTPConnection, size_bytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call a function of so many bytes of JSON, in the wire thread where they are many."""
    if size_bytes <= _LARGE_BYTES:
        return function(*args, **kwargs)
    call = partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(connection.app.state.platform.wire, call)


def out_of_bounds(field: str, detail: str) -> Invalid:
    """The error for a field whose value or length is over a limit of the settings; `detail` is its message too."""
    return Invalid(detail, errors=[FieldError(field=field, message=detail)])


def read_filter(value: object | None) -> Filter | None:
    """The filter that a JSON value describes, None for none. Raises Invalid."""
    return None if value is None else parse_filter(value)


def _content_type(request: Request, *allowed: str) -> str:
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found not in allowed:
        raise UnsupportedMedia(f"The content type must be one of {', '.join(allowed)}.")
    return found


def _validated(body: bytes, shape: type[T], limits: Limits) -> T:
    # Parsed first, then validated in Python: pydantic's own parser accepts NaN.
    value = parse_json(body, limits.max_json_values)
    adapter: TypeAdapter[T] = _adapter(cast(Hashable, shape))  # every class is
    return adapter.validate_python(value, strict=True, context=limits)


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)
