"""JSON, parsed strictly: bounded before it becomes objects, without NaN, infinity and NUL; and written off the loop."""

import asyncio
import codecs
import contextlib
import gc
import json
import re
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json, to_json
from starlette.requests import HTTPConnection
from starlette.responses import Response

from app.domain import MAX_INTEGER, MAX_JSON_VALUES, MIN_INTEGER, Limits
from app.errors import FieldError, Invalid, Malformed, TooMuchWork

JSON = "application/json"
_FEW_ROWS = 16  # of an answer, of 16 KiB of metadata each: a millisecond
MAX_METADATA_DEPTH = 32  # SQLite's and PostgreSQL's JSON functions accept more
_SEPARATORS, _OPENING = (b",", b":", b"[", b"{"), (b"[", b"{")  # a separator stands before each value, after each name
_OBJECT_COST = 4  # lists, objects and texts take longer to make than numbers do
# Possessive: what has matched is not searched again. An escape that a piece cuts in two begins the next one.
_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_PIECE, _LARGE_PIECE = 64 << 10, 1 << 20  # bytes counted at once: nothing else runs meanwhile
_NUL = b"\\u0000"


def parse_json(text: str | bytes, max_values: int = MAX_JSON_VALUES, *, what: str = "The JSON") -> Any:
    """The value of a JSON text, which errors call `what`.

    Raises:
        TooMuchWork: it holds more than `max_values` numbers, or a fourth of so many lists, objects and texts.
        Malformed: it is not JSON.
        Invalid: it holds NaN, infinity or NUL.
    """
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    data = data.removeprefix(codecs.BOM_UTF8)  # as some editors and Windows tools write it
    _check_cost(data, max_values)
    try:
        with _no_collections():
            value = from_json(data, allow_inf_nan=False)
    except ValueError as err:
        # Tell NaN apart from broken JSON: the first is 422, the second 400.
        with contextlib.suppress(ValueError):
            from_json(data, allow_inf_nan=True)
            raise Invalid("NaN and infinity are not allowed.") from err
        raise Malformed(f"{what} cannot be read: {err}.") from err
    # The search is quick; an escaped backslash before "u0000" is found too.
    if _NUL in data and (field := next(_with_nul(value, ""), None)) is not None:
        raise nul_in(field)
    return value


def nul_in(field: str) -> Invalid:
    """The error for a text with NUL, which PostgreSQL cannot store and other JSON parsers cut texts at."""
    name = field[:100].replace("\0", "\\0") or "the body"
    return Invalid(f"{name} holds a NUL character.", errors=[FieldError(field=name, message="holds a NUL character")])


def check_metadata(metadata: Mapping[str, object] | None, field: str, limits: Limits) -> None:
    """Refuse metadata over the limits, and integers that no database stores exactly.

    Raises:
        Invalid: names the field.
    """
    if metadata is None:
        return
    _check_value(metadata, field, MAX_METADATA_DEPTH)
    size = len(json.dumps(metadata, allow_nan=False, ensure_ascii=False).encode())
    if size > limits.max_metadata_bytes:
        raise _invalid(field, f"is over {limits.max_metadata_bytes} bytes")


async def json_response(connection: HTTPConnection, rows: int, build: Callable[[], BaseModel]) -> Response:
    """The response of the model that `build` makes; many rows are made and written in the wire thread."""
    if rows <= _FEW_ROWS:
        return Response(written_json(build()), media_type=JSON)
    wire = connection.app.state.platform.wire
    body = await asyncio.get_running_loop().run_in_executor(wire, lambda: written_json(build()))
    return Response(body, media_type=JSON)


def written_json(model: BaseModel) -> bytes:
    """The JSON of a model; a call of the serializer, which holds the interpreter lock, writes one row of a list."""
    members = []
    for name, value in model:
        rows = b"[" + b",".join(map(to_json, value)) + b"]" if isinstance(value, list) else to_json(value)
        members.append(to_json(name) + b":" + rows)
    return b"{" + b",".join(members) + b"}"


def _check_cost(data: bytes, most: int) -> None:
    """Refuse a text of too many values: as objects they take up to thirty times its bytes."""
    # No byte costs more than an opening bracket.
    if _OBJECT_COST * len(data) <= most or _is_cheap(data, most):
        return
    # Some separators are inside of texts, such as those of a long SVG path: what lies between texts is counted.
    cost, at = 0, 0
    while at < len(data):
        quote = data.find(b'"', at, at + _PIECE)
        piece = data[at : at + _PIECE if quote < 0 else quote]
        cost += _cost(piece)
        at += len(piece)
        if quote >= 0:
            cost += _OBJECT_COST - 1
            at = _end_of_text(data, quote)
        if cost > most:
            # Hundreds of thousands of brackets that nothing closes are no JSON of any size.
            if b"]" not in data and b"}" not in data:
                raise Malformed("The JSON cannot be read: nothing closes its brackets.")
            objects = most // _OBJECT_COST
            raise TooMuchWork(
                f"The JSON may hold {most} numbers, or {objects} lists, objects and texts: send less at once."
            )


def _is_cheap(data: bytes, most: int) -> bool:
    """Whether a text is within the bound even if all separators count, also those inside of texts."""
    cost = 0
    for at in range(0, len(data), _LARGE_PIECE):
        piece = data[at : at + _LARGE_PIECE]
        cost += _cost(piece) + (_OBJECT_COST - 1) * (piece.count(b'"') // 2)
        if cost > most:
            return False
    return True


def _cost(data: bytes) -> int:
    return sum(map(data.count, _SEPARATORS)) + (_OBJECT_COST - 1) * sum(map(data.count, _OPENING))


def _end_of_text(data: bytes, start: int) -> int:
    """Where the text that begins with the quote at `start` ends."""
    at, before = start + 1, start
    while at > before and (found := _TEXT.match(data, at, at + _PIECE)):
        at, before = found.end(), at
        if data[at : at + 1] == b'"':
            return at + 1
    return len(data)  # it never ends


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Hold back garbage collections, which would walk the new objects again and again, six times as long in all."""
    gc.disable()
    try:
        yield
    finally:
        # Whatever another thread does meanwhile: what it found on entering may be this thread's doing.
        gc.enable()


def _with_nul(value: object, path: str) -> Iterator[str]:
    """Paths of the texts and names with NUL."""
    if isinstance(value, str) and "\0" in value:
        yield path.removeprefix(".")
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _with_nul(name, f"{path}.{name[:100]}")
            yield from _with_nul(inner, f"{path}.{name[:100]}")
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _with_nul(inner, f"{path}[{at}]")


def _check_value(value: object, field: str, depth: int) -> None:
    if depth == 0:
        raise _invalid(field, f"is deeper than {MAX_METADATA_DEPTH}")
    # A command checks its files' metadata, which no `parse_json` has seen.
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise _invalid(field, "holds a NUL or half a surrogate pair")
    if isinstance(value, float) and not isfinite(value):  # 1e400 is JSON
        raise _invalid(field, "holds a number that is not finite")
    if isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
        raise _invalid(field, "holds an integer beyond 64 bits: send it as a string")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_value(name, field, depth)
            _check_value(inner, field, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, field, depth - 1)


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(f"Field {field!r} {message}.", errors=[FieldError(field=field, message=message)])
