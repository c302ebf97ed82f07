"""Writes large answers as JSON in parts and off the event loop, so that other requests are answered meanwhile."""

import asyncio
from collections.abc import Callable

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import HTTPConnection
from starlette.responses import Response

from app.api.bodies import JSON

_FEW_ROWS = 16  # of 16 KiB of metadata each: a millisecond


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
