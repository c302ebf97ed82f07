"""`Idempotency-Key`: a write that is sent again is answered from its first response."""

import asyncio
import hashlib
import re
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.api.auth import ApiKeys, Scope, ScopedRoute, declared_scope
from app.api.deps import Tasks, get_platform
from app.errors import Malformed
from app.stores.records.idempotency import Answer

KEY = re.compile(r"[\x21-\x7e]{1,255}")
_STORED_HEADERS = frozenset({"content-type", "location", "etag", "x-seq"})
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class IdempotentRoute(ScopedRoute):
    """A route whose writing POSTs run once for each `Idempotency-Key`, however often they are sent."""

    def get_route_handler(self) -> Handler:
        """The route's handler, which returns a stored response where the key has one."""
        handle = super().get_route_handler()

        async def handle_once(request: Request) -> Response:
            key = request.headers.get("idempotency-key")
            services = (await get_platform(request)).services
            tasks = None if services is None else services.tasks
            # Reads that are POSTs, such as /retrieve, are repeatable as they are.
            is_write = request.method == "POST" and declared_scope(self) in (Scope.WRITE, Scope.ADMIN)
            if key is None or not is_write or tasks is None:
                return await handle(request)
            if not KEY.fullmatch(key):
                raise Malformed("Idempotency-Key must be 1 to 255 visible ASCII characters.")
            return await _handle_once(request, handle, tasks, key)

        return handle_once


async def _handle_once(request: Request, handle: Handler, tasks: Tasks, key: str) -> Response:
    name, content = _caller_key(request, key), await asyncio.to_thread(_request_digest, request, await request.body())
    async with tasks.idempotency.claimed(name, content) as claim:
        if claim.answer is not None:
            headers = {**claim.answer.headers, "Idempotency-Replayed": "true"}
            return Response(claim.answer.body, status_code=claim.answer.status, headers=headers)
        request.state.idempotency_token = claim.token  # read by `Call.token`
        response = await handle(request)
        # Headers of the first transfer, such as Server-Timing, are not the answer's.
        headers = {name: value for name, value in response.headers.items() if name in _STORED_HEADERS}
        answer = Answer(status=response.status_code, headers=headers, body=bytes(response.body))
        await tasks.idempotency.keep(name, answer)
    return response


def _caller_key(request: Request, key: str) -> str:
    """Digest of the key and its caller: two callers may choose the same key.

    A caller is the name of an API key, sent or of a session. Where keys are off a proxy may tell callers apart.
    """
    keys: ApiKeys = request.app.state.platform.keys
    name = keys.name_of(request)
    caller = [name] if name else [request.headers.get("authorization", ""), request.headers.get("x-api-key", "")]
    return hashlib.sha256("\0".join([*caller, key]).encode("utf-8", "surrogatepass")).hexdigest()


def _request_digest(request: Request, body: bytes) -> str:
    """Digest of the address and the body, by which a key that is used for another request is recognized."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    boundary = re.search(r'boundary="?([^";,]+)', parameters)
    # A client that sends a form again chooses another boundary.
    if boundary is not None:
        body = body.replace(boundary[1].encode("latin-1"), b"")
    digest = hashlib.sha256(f"{request.url.path}?{request.url.query}\0{kind}\0".encode())
    digest.update(body)
    return digest.hexdigest()
