"""Reads request bodies, strict JSON or multipart forms, into wire models and files."""

import asyncio
import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.requests import Request

from app.domain import Limits
from app.errors import FieldError, Invalid, Malformed, UnsupportedMedia
from app.imaging.sources import EncodedImage
from app.stores.filters import MAX_INTEGER, Filter, parse_filter

T = TypeVar("T")

JSON = "application/json"
_MULTIPART = "multipart/form-data"
MAX_METADATA_DEPTH = 32  # SQLite's and PostgreSQL's JSON functions accept more
_LARGE_BYTES = 64 * 1024  # parsed off the event loop from here on: about a millisecond


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A multipart form: its files and its text fields, each with its name and in order."""

    files: Sequence[tuple[str, EncodedImage]]
    texts: Sequence[tuple[str, str]]

    def images(self, field: str) -> list[EncodedImage]:
        """The files of one field, in order."""
        return [image for name, image in self.files if name == field]

    def one_image(self, field: str) -> EncodedImage | None:
        """The file of a field that may not repeat. Raises Invalid where it does."""
        found = self.images(field)
        if len(found) > 1:
            raise _invalid(field, "is sent more than once")
        return found[0] if found else None

    def fields(self, *, json: Sequence[str] = (), repeated: str | None = None) -> dict[str, Any]:
        """The text fields but `repeated`; those named in `json` are parsed. Raises Invalid where one is sent twice."""
        found: dict[str, Any] = {}
        for name, value in self.texts:
            if name in found:
                raise _invalid(name, "is sent more than once")
            if name != repeated:
                found[name] = value
        return found | {name: parse_json(found[name]) for name in json if name in found}

    def repeated(self, field: str) -> list[str]:
        """All values of one text field, in order."""
        return [value for name, value in self.texts if name == field]


async def read_body(request: Request, shape: type[T], limits: Limits, *, files: Collection[str]) -> T | Form:
    """The body: `shape` of JSON, or a multipart form.

    Args:
        files: names of fields that must be files; a name that ends in `:` stands for all that start with it.

    Raises:
        UnsupportedMedia, Malformed, pydantic.ValidationError: as `read_json`.
        Invalid: a file under another name, or text in place of a file.
        starlette.exceptions.HTTPException: 400, the form is malformed or has too many parts.
    """
    is_form = _content_type(request, JSON, _MULTIPART) == _MULTIPART
    return await _read_multipart(request, limits, files) if is_form else await read_json(request, shape)


async def read_json(request: Request, shape: type[T], *media_types: str) -> T:
    """The JSON body as `shape`; types are strict, so that "1" is no number.

    Args:
        media_types: those allowed beside `application/json`.

    Raises:
        UnsupportedMedia: the body is of another type.
        Malformed: it is not JSON.
        Invalid: it holds NaN or infinity.
        pydantic.ValidationError: it is not of the shape.
    """
    _content_type(request, JSON, *media_types)
    body = await request.body()
    if len(body) > _LARGE_BYTES:
        return await asyncio.to_thread(_validated, body, shape)
    return _validated(body, shape)


def _content_type(request: Request, *allowed: str) -> str:
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found not in allowed:
        raise UnsupportedMedia(f"The content type must be one of {', '.join(allowed)}.")
    return found


async def _read_multipart(request: Request, limits: Limits, files: Collection[str]) -> Form:
    images: list[tuple[str, EncodedImage]] = []
    texts: list[tuple[str, str]] = []
    # The parser's own limits are lower than ours.
    form = await request.form(
        max_files=limits.max_form_parts, max_fields=limits.max_form_parts, max_part_size=limits.max_form_field_bytes
    )
    try:
        for name, value in form.multi_items():
            is_file = any(name == field or (field.endswith(":") and name.startswith(field)) for field in files)
            # A part with a file name is a file, whatever its field is called.
            if isinstance(value, UploadFile) != is_file:
                raise _invalid(name, "must be a file" if is_file else "is not a file field of this form")
            if isinstance(value, UploadFile):
                images.append((name, EncodedImage(data=await value.read())))
            else:
                texts.append((name, value))
    finally:
        await form.close()  # large parts are temporary files
    return Form(files=images, texts=texts)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        Malformed: it is not JSON.
        Invalid: it holds NaN or infinity.
    """
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as err:
        # Tell NaN apart from broken JSON: the first is 422, the second 400.
        with contextlib.suppress(ValueError):
            from_json(text, allow_inf_nan=True)
            raise Invalid("NaN and infinity are not allowed.") from err
        raise Malformed("The JSON cannot be read.") from err


def check_metadata(metadata: Mapping[str, object] | None, field: str, limits: Limits) -> None:
    """Refuse metadata over the limits, and values that some JSON parsers or databases change.

    Raises:
        Invalid: names the field.
    """
    if metadata is None:
        return
    _check_value(metadata, field, MAX_METADATA_DEPTH)
    try:
        size = len(json.dumps(metadata, allow_nan=False, ensure_ascii=False).encode())
    except ValueError as err:
        raise _invalid(field, "holds a number that is not finite") from err
    if size > limits.max_metadata_bytes:
        raise _invalid(field, f"is over {limits.max_metadata_bytes} bytes")


def out_of_bounds(field: str, detail: str) -> Invalid:
    """The error for a field whose value or length is over a limit of the settings; `detail` is its message too."""
    return Invalid(detail, errors=[FieldError(field=field, message=detail)])


def read_filter(value: object | None) -> Filter | None:
    """The filter that a JSON value describes, None for none. Raises Invalid."""
    return None if value is None else parse_filter(value)


def _check_value(value: object, field: str, depth: int) -> None:
    if depth == 0:
        raise _invalid(field, f"is deeper than {MAX_METADATA_DEPTH}")
    # PostgreSQL refuses NUL; UTF-8 has no form of a lone surrogate.
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise _invalid(field, "holds a NUL or half a surrogate pair")
    # JavaScript rounds larger integers.
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise _invalid(field, "holds an integer beyond 2^53 - 1: send it as a string")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_value(name, field, depth)
            _check_value(inner, field, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, field, depth - 1)


def _validated(body: bytes, shape: type[T]) -> T:
    # Parsed first, then validated in Python: pydantic's own parser accepts NaN.
    return TypeAdapter(shape).validate_python(parse_json(body), strict=True)


def _invalid(field: str, message: str) -> Invalid:
    name = field[:100]  # a name of the client's, echoed in the response
    return Invalid(f"Field {name!r} {message}.", errors=[FieldError(field=name, message=message)])
