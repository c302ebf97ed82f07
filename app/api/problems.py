"""Maps errors to responses (RFC 9457, `application/problem+json`); nothing else does."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from app import errors
from app.api.schemas.wire import FORM, IN_WORDS, OVER_LIMIT, OVER_WORK, link
from app.errors import FieldError, ServiceError

MEDIA_TYPE = "application/problem+json"
_OVER: Mapping[str, type[ServiceError]] = {OVER_LIMIT: errors.Invalid, OVER_WORK: errors.TooMuchWork}
_NO_OBJECT = frozenset({"model_type", "model_attributes_type", "dict_type", "dataclass_type"})
_MAX_FIELD_ERRORS = 32  # a body of a thousand wrong items would echo megabytes


def service_error(error: Exception) -> ServiceError:
    """The error that a client may see; an unknown one becomes an internal error without details."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if isinstance(error, ValidationError):
        return _invalid(error.errors(include_url=False, include_input=False))
    if isinstance(error, HTTPException):
        # Of several kinds with one status the general one is defined first.
        kind = next((kind for kind in catalogue().values() if kind.status == error.status_code), ServiceError)
        if kind is not ServiceError:
            return kind(f"{kind.title}.")
    return ServiceError("The service failed; its log has the error under the request id.")


def problem_body(error: ServiceError, connection: HTTPConnection) -> dict[str, object]:
    """The members of a problem document about a connection's request."""
    body: dict[str, object] = {
        "type": link(connection, f"/errors/{error.code}"),
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": link(connection, connection.url.path),
        "code": error.code,
        "request_id": getattr(connection.state, "request_id", ""),
    }
    if error.errors:
        body["errors"] = [asdict(field) for field in error.errors]
    return body


def problem_response(error: ServiceError, connection: HTTPConnection) -> Response:
    """The response of an error, with the headers that its status requires."""
    headers: dict[str, str] = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="vermouth"'
    if isinstance(error, errors.UnsupportedCoding):
        headers["Accept-Encoding"] = "gzip, deflate"
    if error.retry_after_s is not None:
        # The nearest second: rounded up, a wait of 1.1 s would be reported as nearly twice as long.
        headers["Retry-After"] = str(max(1, math.floor(error.retry_after_s + 0.5)))
    # ASCII escapes can carry lone surrogates; UTF-8 cannot.
    body = json.dumps(problem_body(error, connection))
    return Response(body, status_code=error.status, headers=headers, media_type=MEDIA_TYPE)


def catalogue() -> Mapping[str, type[ServiceError]]:
    """Every error a client may see, by its code."""
    kinds: list[type[ServiceError]] = [ServiceError, *ServiceError.__subclasses__()]
    return {kind.code: kind for kind in kinds}


def install(app: FastAPI) -> None:
    """Answer an app's known errors by the mapping; the outermost middleware answers unknown ones."""

    async def answer(request: Request, error: Exception) -> Response:
        response = problem_response(service_error(error), request)
        # RFC 9110 requires `Allow` in a 405; the router names the methods of the first route only.
        if isinstance(error, HTTPException) and error.status_code == 405:
            response.headers["Allow"] = ", ".join(_methods_at(app, request.scope["path"]))
        return response

    for kind in (ServiceError, RequestValidationError, ValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def _methods_at(app: FastAPI, path: str) -> Sequence[str]:
    """The methods of all routes at a path."""
    routes = [context for context in iter_route_contexts(app.routes) if isinstance(context.original_route, APIRoute)]
    found = [context.methods or () for context in routes if context.path_regex.match(path)]
    methods = set(chain.from_iterable(found))
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def _invalid(found: Sequence[Any]) -> ServiceError:
    over = next((entry for entry in found if entry["type"] in _OVER), None)
    if over is not None:
        path = _path(over["loc"])
        named = [FieldError(field=path, message=over["msg"])] if path else []  # none where the body is a list
        return _OVER[over["type"]](over["msg"], errors=named)
    fields = [FieldError(field=_path(entry["loc"]), message=_message(entry)) for entry in found[:_MAX_FIELD_ERRORS]]
    names = ", ".join(dict.fromkeys(field.field or "the body" for field in fields))
    why = f" {fields[0].message.rstrip('.')}." if len(fields) == 1 else ""
    return errors.Invalid(f"Out of bounds or not in the schema: {names[:500]}.{why}", errors=fields)


def _message(entry: Mapping[str, Any]) -> str:
    """A validation error's own sentence, unless it names a class of this program or a pattern."""
    if entry["type"] in _NO_OBJECT:
        return "Input should be an object"
    known = IN_WORDS.get(entry["ctx"]["pattern"]) if entry["type"] == "string_pattern_mismatch" else None
    return known or str(entry["msg"])


def _path(location: Sequence[int | str]) -> str:
    path = ""
    # Names are the client's and may be of any length.
    for part in location[1:] if location and location[0] == "body" else location:
        if isinstance(part, int) or not part.startswith(FORM):  # which form of a union was tried is no part of the body
            path += f"[{part}]" if isinstance(part, int) else f".{part[:100]}"
    return path.removeprefix(".")
