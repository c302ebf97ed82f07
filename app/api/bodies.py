"""Reads request bodies, strict JSON or multipart forms, into wire models and files."""

import asyncio
from collections.abc import Callable, Collection, Hashable
from functools import cache, partial
from typing import Any, ParamSpec, TypeVar, cast

from pydantic import TypeAdapter
from starlette.requests import HTTPConnection, Request

from app.api.forms import Form, read_form
from app.api.strict_json import JSON, parse_json
from app.domain import Limits
from app.errors import FieldError, Invalid, UnsupportedMedia
from app.stores.filters import Filter, parse_filter

P = ParamSpec("P")
T = TypeVar("T")
Shape = TypeVar("Shape")

_MULTIPART = "multipart/form-data"
_LARGE_BYTES = 64 * 1024  # handled off the event loop from here on: about a millisecond


async def read_body(
    request: Request,
    shape: type[Shape],
    convert: Callable[[Shape | Form, Limits], T],
    limits: Limits,
    *,
    files: Collection[str],
) -> T:
    """What `convert` makes of the body, which is `shape` as JSON, or a multipart form.

    Args:
        convert: runs in the wire thread where the body is large.
        files: as in `read_form`.

    Raises:
        As `read_json`, `read_form` and `convert`.
    """
    if _content_type(request, JSON, _MULTIPART) == _MULTIPART:
        form = await read_form(request, limits, files)
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
