"""What FastAPI cannot derive of the OpenAPI document: problems, keys, headers, bodies, forms and the WebSocket."""

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api.auth import Scope, declared_scope
from app.api.deps import read_if_match, require_if_match, wait_for_min_seq
from app.api.idempotency import KEY, IdempotentRoute
from app.api.middleware import QUIET_ROUTES
from app.api.problems import MEDIA_TYPE, catalogue
from app.api.schemas.retrieval import LiveAuth, LiveError, LiveQuery, LiveResults
from app.api.schemas.wire import LIMIT, Problem
from app.api.sessions import COOKIE
from app.domain import Limits

REF = "#/components/schemas/{model}"
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
}
_TEXT, _NUMBER = {"type": "string"}, {"type": "integer", "minimum": 1, "maximum": 999_999_999}
_SEQ = {"type": "integer", "format": "int64", "minimum": 0, "maximum": 10**18 - 1}
_TAG = '(W/)?"[^"]*"'
_SENT: dict[str, tuple[str, dict[str, Any]]] = {
    "X-Request-ID": ("Id of the request in the log and in problems; made up where absent.", _TEXT),
    "X-Request-Timeout-Ms": ("Deadline of this request, if that is before the service's own.", _NUMBER),
    "X-Min-Seq": ("Read no state older than the write of this `X-Seq`.", _SEQ),
    "Idempotency-Key": (
        "A write that is sent again with it is answered from its first response.",
        {**_TEXT, "pattern": f"^{KEY.pattern}$"},
    ),
    "If-Match": ("Only this version, an `ETag`; `*` for any.", {**_TEXT, "pattern": rf"^(\*|{_TAG}( *, *{_TAG})*)$"}),
}
"""Request headers: description and schema."""
_RECEIVED: dict[str, tuple[str, dict[str, Any]]] = {
    "X-Request-ID": ("Id of the request.", _TEXT),
    "Server-Timing": ("Milliseconds of the request's phases.", _TEXT),
    "X-Seq": ("The write's place in the change log.", _SEQ),
    "ETag": ("The version.", _TEXT),
    "Cache-Control": ("How long the answer may be used again.", _TEXT),
    "Location": ("Where the new resource is.", _TEXT),
    "Retry-After": ("Seconds until a repetition may succeed.", _NUMBER),
    "WWW-Authenticate": ("How to send a key.", _TEXT),
    "Accept-Encoding": ("The content codings that are decoded.", _TEXT),
}
_OF_ERRORS = {401: ["WWW-Authenticate"], 415: ["Accept-Encoding"], 429: ["Retry-After"], 503: ["Retry-After"]}
LIVE = {
    "summary": "Search while the user draws",
    "description": "A WebSocket, which OpenAPI cannot describe: `x-websocket` names its messages. Each is JSON text of"
    " at most 1 MiB. A newer `seq` supersedes queries that still wait.",
    "x-websocket": {
        "receives": [{"$ref": REF.format(model=one)} for one in ("LiveAuth", "LiveQuery")],
        "sends": [{"$ref": REF.format(model=one)} for one in ("LiveResults", "LiveError")],
        "closeCodes": {
            "1009": "The message is too large.",
            "1012": "The service is stopping.",
            "1013": "The service is loading.",
            "4400": "The query of the address cannot be read.",
            "4401": "The key is missing or unknown.",
            "4403": "The key lacks the scope, or the page has another origin.",
            "4422": "The address has a query parameter.",
            "4429": "Too many live connections.",
        },
    },
}
_bodies: dict[str, type[BaseModel]] = {}  # models of request bodies, by name
_forms: dict[str, tuple[type[BaseModel] | None, dict[str, bool]]] = {}  # text fields and files of forms, by name


def request_body(
    *, json: type[BaseModel], form: type[BaseModel] | None = None, files: dict[str, bool] | None = None
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its own body.

    Args:
        json: the model of a JSON body.
        form: the model of the text fields of a multipart body.
        files: names of the file fields of a multipart body, and whether each may repeat.
    """
    _bodies[json.__name__] = json
    content = {"application/json": {"schema": {"$ref": REF.format(model=json.__name__)}}}
    if files is not None:
        name = f"{json.__name__}Form"
        _forms[name] = form, files
        content["multipart/form-data"] = {"schema": {"$ref": REF.format(model=name)}}
    return {"requestBody": {"required": True, "content": content}}


def install(app: FastAPI) -> None:
    """Complete an app's OpenAPI document; call it after all routes are included."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:  # FastAPI caches the document
            document = generate()
            _complete(document, app)
            app.openapi_schema = _with_limits(document, app.state.platform.limits)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _complete(document: dict[str, Any], app: FastAPI) -> None:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(_schemas())
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which this service never sends
        schemas.pop(name, None)
    components["securitySchemes"] = _SECURITY_SCHEMES
    components["responses"] = _problems()
    components["headers"] = {name: {"description": text, "schema": kind} for name, (text, kind) in _RECEIVED.items()}
    components["parameters"] = {
        name: {"name": name, "in": "header", "description": text, "schema": kind, "required": False}
        for name, (text, kind) in _SENT.items()
    }
    required = {**components["parameters"]["If-Match"], "required": True}
    components["parameters"]["Required-If-Match"] = required
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        for method in context.methods or ():
            operation = document["paths"].get(context.path, {}).get(method.lower())
            if operation is not None and isinstance(route, APIRoute):  # None where it is excluded from the schema
                _complete_operation(operation, route, context.path or "", method)
    document["paths"]["/retrieve/live"] = LIVE


def _complete_operation(operation: dict[str, Any], route: APIRoute, path: str, method: str) -> None:
    scope, calls = declared_scope(route), set(_calls(route.dependant))
    is_write = scope in (Scope.WRITE, Scope.ADMIN)
    if scope is not Scope.OPEN:
        operation["security"] = [{name: []} for name in _SECURITY_SCHEMES]
    sent, received = ["X-Request-ID"], ["X-Request-ID", "Server-Timing"]
    statuses = {400, 414, 431, 500} | ({401, 403} if scope is not Scope.OPEN else set())
    if path not in QUIET_ROUTES:
        sent.append("X-Request-Timeout-Ms")
        statuses |= {429, 504}
    if scope is not Scope.METRICS:
        statuses.add(503)
    if wait_for_min_seq in calls:
        sent.append("X-Min-Seq")
        statuses |= {404, 409}
    if isinstance(route, IdempotentRoute) and method == "POST" and is_write:
        sent.append("Idempotency-Key")
    if calls & {read_if_match, require_if_match}:
        is_required = require_if_match in calls
        sent.append("Required-If-Match" if is_required else "If-Match")
        statuses |= {412, 428} if is_required else {412}
    if "requestBody" in operation:
        statuses |= {408, 413, 415, 422, 507} if is_write else {408, 413, 415, 422}
    if is_write:
        received.append("X-Seq")
        statuses |= {404, 409}
    if "{" in path:
        statuses |= {404, 422}
    if "parameters" in operation:
        statuses.add(422)
    if path == "/segment":
        statuses.add(406)
    operation.setdefault("parameters", []).extend({"$ref": f"#/components/parameters/{name}"} for name in sent)
    for status, response in operation["responses"].items():
        names = [*received, *_OWN_HEADERS.get((path, method), ())] if status.startswith("2") else []
        if names:
            response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    for status in sorted(statuses):
        operation["responses"][str(status)] = {"$ref": f"#/components/responses/Problem{status}"}


_EPISODE, _ITEM = "/fewshot/episodes/{episode_id}", "/galleries/{name}/items/{item_id}"
_VERSIONED = [
    (path, method)
    for path, methods in {
        "/fewshot/episodes": ["POST"],
        _EPISODE: ["GET", "PATCH"],
        f"{_EPISODE}/support": ["POST"],
        f"{_EPISODE}/support/{{support_id}}": ["DELETE"],
        f"{_EPISODE}/ways/{{label}}": ["DELETE"],
        _ITEM: ["GET", "PUT", "PATCH"],
        "/class-sets/{name}": ["GET", "PUT"],
    }.items()
    for method in methods
]
_OWN_HEADERS: dict[tuple[str, str], list[str]] = {
    **{key: ["ETag"] for key in _VERSIONED},
    ("/fewshot/episodes", "POST"): ["ETag", "Location"],
    (f"{_ITEM}/image", "GET"): ["ETag", "Cache-Control"],
    (f"{_EPISODE}/support/{{support_id}}/image", "GET"): ["ETag", "Cache-Control"],
    ("/galleries/{name}/export", "GET"): ["X-Seq"],
}


def _calls(dependant: Dependant) -> Iterator[Callable[..., Any] | None]:
    """The functions that a route depends on."""
    for inner in dependant.dependencies:
        yield inner.call
        yield from _calls(inner)


def _schemas() -> dict[str, Any]:
    """Named schemas of all that FastAPI does not see: bodies, forms, problems and live messages."""
    texts = [form for form, _ in _forms.values() if form is not None]
    models: list[type[BaseModel]] = [Problem, LiveAuth, LiveQuery, LiveResults, LiveError, *_bodies.values(), *texts]
    _, found = models_json_schema([(model, "validation") for model in dict.fromkeys(models)], ref_template=REF)
    schemas: dict[str, Any] = found["$defs"]
    binary = {"type": "string", "format": "binary"}
    for name, (form, files) in _forms.items():
        text: dict[str, Any] = {"type": "object"} if form is None else schemas[form.__name__]
        parts = {one: {"type": "array", "items": binary} if repeats else binary for one, repeats in files.items()}
        # A form has no `title` of another model, and its JSON examples are not its own.
        own = {key: value for key, value in text.items() if key not in ("title", "examples")}
        schemas[name] = {**own, "title": name, "properties": {**text.get("properties", {}), **parts}}
    return schemas


def _problems() -> dict[str, Any]:
    """A response for each status of the catalogue, with an example of each of its errors."""
    found: dict[str, Any] = {}
    for code, kind in catalogue().items():
        response = found.setdefault(f"Problem{kind.status}", {"description": kind.title})
        names = ["X-Request-ID", *_OF_ERRORS.get(kind.status, [])]
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
        media = {"schema": {"$ref": REF.format(model="Problem")}, "examples": {}}
        example = Problem(
            type=f"/errors/{code}",
            title=kind.title,
            status=kind.status,
            detail=f"{kind.title}.",
            instance="/retrieve",
            code=code,
            request_id="0f8fad5bd9cb469fa16570867728950e",
        )
        content = response.setdefault("content", {}).setdefault(MEDIA_TYPE, media)
        content["examples"][code] = {"summary": kind.title, "value": example.model_dump(exclude={"errors"})}
    return found


def _with_limits(node: Any, limits: Limits) -> Any:
    """The document with the values of the settings in place of the marks; routes of all apps share the marked one."""
    if isinstance(node, list):
        return [_with_limits(inner, limits) for inner in node]
    if not isinstance(node, dict):
        return node
    found = {name: _with_limits(inner, limits) for name, inner in node.items() if name != LIMIT}
    if LIMIT in node:
        found["maxItems" if node.get("type") == "array" else "maximum"] = getattr(limits, node[LIMIT])
    return found
