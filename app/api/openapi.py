"""What FastAPI cannot know of the contract: the one form of errors, and who may call what."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from app.api.auth import Scope, declared_scope
from app.api.problems import MEDIA_TYPE

_REF = "#/components/schemas/Problem"
_FASTAPI_ERRORS = ("HTTPValidationError", "ValidationError")
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


class ProblemField(BaseModel):
    """One offending field: a path such as `items[3].metadata` and a sentence."""

    field: str
    message: str


class Problem(BaseModel):
    """Every error of this service (RFC 9457); `GET /errors/{code}` tells of its kind."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[ProblemField] = []


def install(app: FastAPI) -> None:
    """Make an app's OpenAPI document tell of problems and keys; call it once all routes are there."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        document = generate()
        if is_new:
            _complete(document, app)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _complete(document: dict[str, Any], app: FastAPI) -> None:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in _FASTAPI_ERRORS:
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"))
    schemas["Problem"] = problem
    components["securitySchemes"] = _SECURITY_SCHEMES
    error = {"description": "A problem", "content": {MEDIA_TYPE: {"schema": {"$ref": _REF}}}}
    for context in iter_route_contexts(app.routes):
        scope = declared_scope(context.original_route)
        for method in context.methods or ():
            operation = document["paths"].get(context.path, {}).get(method.lower())
            if operation is None:
                continue
            if operation["responses"].get("422", {}).get("description") == "Validation Error":
                del operation["responses"]["422"]
            operation["responses"]["default"] = error
            if scope is not Scope.OPEN:
                operation["security"] = [{name: []} for name in _SECURITY_SCHEMES]
