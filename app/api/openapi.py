"""What FastAPI cannot derive of the OpenAPI document: problems, API keys, and bodies of JSON or a form."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, TypeAdapter

from app.api.auth import Scope, declared_scope
from app.api.problems import MEDIA_TYPE
from app.api.schemas.wire import LIMIT
from app.domain import Limits

PROBLEM_RESPONSE: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
"""`responses` of the app; with a default response, FastAPI adds no 422 of its own."""
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


class ProblemField(BaseModel):
    """One offending field: a path such as `items[3].metadata` and a sentence."""

    field: str
    message: str


class Problem(BaseModel):
    """Every error of this service (RFC 9457); `GET /errors/{code}` describes its code."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[ProblemField] = []


def request_body(
    *, json: Any = None, form: type[BaseModel] | None = None, files: dict[str, bool] | None = None
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its own body.

    Args:
        json: the type of a JSON body.
        form: the model of the text fields of a multipart body.
        files: names of the file fields of a multipart body, and whether each may repeat.
    """
    content: dict[str, object] = {}
    if json is not None:
        content["application/json"] = {"schema": _inline(TypeAdapter(json).json_schema())}
    if files is not None:
        content["multipart/form-data"] = {"schema": _form_schema(form, files)}
    return {"requestBody": {"required": True, "content": content}}


def install(app: FastAPI) -> None:
    """Add problems and API keys to an app's OpenAPI document; call it after all routes are included."""
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
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    components.setdefault("schemas", {}).update(problem.pop("$defs"), Problem=problem)
    components["securitySchemes"] = _SECURITY_SCHEMES
    for context in iter_route_contexts(app.routes):
        if declared_scope(context.original_route) is Scope.OPEN:
            continue
        for method in context.methods or ():
            operation = document["paths"].get(context.path, {}).get(method.lower())
            if operation is not None:  # None where it is excluded from the schema
                operation["security"] = [{name: []} for name in _SECURITY_SCHEMES]


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


def _form_schema(form: type[BaseModel] | None, files: dict[str, bool]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if form is not None:
        schema = _inline(form.model_json_schema())
    binary = {"type": "string", "format": "binary"}
    parts = {name: {"type": "array", "items": binary} if repeats else binary for name, repeats in files.items()}
    return {**schema, "properties": {**schema.get("properties", {}), **parts}}


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its `$defs` inlined; of this API's types only JSON values are recursive, and become `{}`."""
    definitions = schema.pop("$defs", {})

    # FastAPI copies `openapi_extra` as it is: references into `$defs` would dangle.
    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str):
            name = reference.rsplit("/", 1)[-1]
            return {} if name == "JsonValue" else resolve(definitions[name])
        return {key: resolve(value) for key, value in node.items() if key != "discriminator"}

    resolved: dict[str, Any] = resolve(schema)
    return resolved
