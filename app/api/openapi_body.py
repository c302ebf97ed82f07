"""Request bodies that come as JSON or multipart, for the OpenAPI description."""

from typing import Any

from pydantic import BaseModel, TypeAdapter


def request_body(
    *,
    json: Any = None,
    form: type[BaseModel] | None = None,
    files: dict[str, bool] | None = None,
    required: bool = True,
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its own body.

    Args:
        json: the type of the JSON form.
        form: the model of the multipart form's text fields.
        files: names of its file fields, and whether each may repeat.
        required: whether a body must come.
    """
    content: dict[str, object] = {}
    if json is not None:
        content["application/json"] = {"schema": _inline(TypeAdapter(json).json_schema())}
    if files is not None:
        schema = _inline(form.model_json_schema()) if form else {"type": "object", "properties": {}}
        properties = schema["properties"]
        binary = {"type": "string", "format": "binary"}
        for name, repeats in files.items():
            properties[name] = {"type": "array", "items": binary} if repeats else binary
        content["multipart/form-data"] = {"schema": schema}
    return {"requestBody": {"required": required, "content": content}}


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
