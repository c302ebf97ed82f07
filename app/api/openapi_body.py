"""Request bodies that come as JSON or multipart, for the OpenAPI description."""

from typing import Any

from pydantic import BaseModel, TypeAdapter


def request_body(
    *, json: Any = None, form: type[BaseModel] | None = None, files: dict[str, bool] | None = None
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its own body.

    Args:
        json: the type of the JSON form.
        form: the model of the multipart form's text fields.
        files: names of its file fields, and whether each may repeat.
    """
    content: dict[str, object] = {}
    if json is not None:
        content["application/json"] = {"schema": _inline(TypeAdapter(json).json_schema())}
    if files is not None:
        content["multipart/form-data"] = {"schema": _form_schema(form, files)}
    return {"requestBody": {"required": True, "content": content}}


def _form_schema(form: type[BaseModel] | None, files: dict[str, bool]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if form is not None:
        schema = _inline(form.model_json_schema())
    binary = {"type": "string", "format": "binary"}
    parts = {name: {"type": "array", "items": binary} if repeats else binary for name, repeats in files.items()}
    return {**schema, "properties": {**schema.get("properties", {}), **parts}}


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its `$defs` put where they are used; ours are never recursive but for JSON values."""
    definitions = schema.pop("$defs", {})

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
