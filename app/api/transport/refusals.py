"""Answers to what never becomes a request: whole responses, each a problem document, before the connection closes."""

import re
import uuid
from collections.abc import Sequence

import httptools
from starlette.requests import HTTPConnection
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app import errors
from app.api.problems import problem_response
from app.errors import ServiceError
from app.runtime.telemetry import get_logger

MAX_HEADER_BYTES = 64 << 10  # of the request line and all headers
MAX_HEADERS = 100
_METHOD = re.compile(rb"[A-Z]+ ")


def parse_error(error: httptools.HttpParserError, data: bytes) -> ServiceError:
    """What a request that the parser refuses is answered with."""
    reason = str(error)
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _METHOD.match(data):
        return errors.NotImplementedInHttp("The method is unknown.")
    if "Invalid HTTP version" in reason or "PRI/Upgrade" in reason:
        return errors.VersionNotSupported("The service speaks HTTP/1.0 and HTTP/1.1.")
    # The parser's own reasons are constants, such as "Duplicate Content-Length".
    is_ours = isinstance(error, httptools.HttpParserCallbackError | httptools.HttpParserInvalidURLError)
    return errors.Malformed("This is not HTTP/1.1." if is_ours or not reason else f"This is not HTTP/1.1: {reason}.")


def head_error(version: str, method: bytes, headers: Sequence[tuple[bytes, bytes]]) -> ServiceError | None:
    """Why a request with complete headers is refused."""
    if version not in ("1.1", "1.0"):
        return errors.VersionNotSupported(f"HTTP/{version} is not supported.")
    hosts, coding = 0, b"chunked"
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            coding = value.strip().lower() if version == "1.1" else b""
    # RFC 9112, 3.2; HTTP/1.0 has no such header.
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return errors.Malformed("Send exactly one Host header.")
    if coding != b"chunked":
        return errors.NotImplementedInHttp("The only transfer coding is chunked, in HTTP/1.1.")
    if method == b"CONNECT":
        return errors.NotImplementedInHttp("The service is no proxy.")
    return None


def refusal_bytes(error: ServiceError, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """A whole response for what has no request."""
    request_id = uuid.uuid4().hex
    get_logger().info("refused", status=error.status, code=error.code, request_id=request_id)
    scope = {"type": "http", "path": "", "query_string": b"", "headers": [], "state": {"request_id": request_id}}
    response = problem_response(error, HTTPConnection(scope))
    own = [(b"connection", b"close"), (b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
    headers = [*default_headers, *response.raw_headers, *own]
    return b"".join(
        [STATUS_LINE[error.status], *(b"%b: %b\r\n" % header for header in headers), b"\r\n", bytes(response.body)]
    )


def headers_too_large() -> ServiceError:
    """The refusal of more headers than fit."""
    return errors.HeadersTooLarge(f"Headers may hold {MAX_HEADER_BYTES} bytes in at most {MAX_HEADERS} fields.")
