"""What a request says of the state it expects: `If-Match`, `X-Min-Seq`, `Idempotency-Key`."""

import asyncio
import hashlib
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import Response

from app.api.auth import Scope, ScopedRoute, declared_scope
from app.api.deps import platform_of, remaining_s_of
from app.api.task_deps import tasks_of
from app.errors import Malformed, PreconditionRequired
from app.stores.records.idempotency import Answer
from app.tasks.assemble import Tasks

_TAG = re.compile(r'(?:W/)?"(\d{1,18})"')
_SEQ = re.compile(r"\d{1,18}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_NO_ROW = -1
ANY_VERSION = range(1 << 62)
"""`If-Match: *`: any version, but there must be one."""
_KEPT_HEADERS = frozenset({"content-type", "location", "etag", "x-seq"})


def etag(version: int) -> str:
    """The entity tag of a version."""
    return f'"{version}"'


async def read_if_match(request: Request) -> Sequence[int] | None:
    """The versions `If-Match` allows; None where it is absent.

    Weak tags count too: proxies that compress make strong ones weak.

    Raises:
        Malformed: it is neither `*` nor a list of entity tags.
    """
    header = request.headers.get("if-match")
    if header is None:
        return None
    if header.strip() == "*":
        return ANY_VERSION
    tags = [tag.strip() for tag in header.split(",")]
    if not all(re.fullmatch(r'(?:W/)?"[^"]*"', tag) for tag in tags):
        raise Malformed('If-Match must be "*" or a list of entity tags.')
    # A tag that no version has matches none.
    found = [_TAG.fullmatch(tag) for tag in tags]
    return [int(match[1]) if match else _NO_ROW for match in found]


async def require_if_match(request: Request) -> Sequence[int] | None:
    """As `read_if_match`. Raises PreconditionRequired where it is absent."""
    if "if-match" not in request.headers:
        raise PreconditionRequired("Send If-Match with the ETag of the version you change.")
    return await read_if_match(request)


IfMatchDep = Annotated[Sequence[int] | None, Depends(read_if_match)]
RequiredIfMatchDep = Annotated[Sequence[int] | None, Depends(require_if_match)]


async def wait_for_min_seq(request: Request) -> None:
    """Wait until this process has applied the write that `X-Min-Seq` names.

    Raises:
        Malformed: it is no number.
        DeadlineExceeded: it was not reached in time.
    """
    header = request.headers.get("x-min-seq")
    if header is None:
        return
    if not _SEQ.fullmatch(header):
        raise Malformed("X-Min-Seq must be a whole number.")
    await tasks_of(request).galleries.wait_for(int(header), timeout_s=0.9 * remaining_s_of(request))


async def read_token(request: Request) -> str | None:
    """What made-up ids follow from where the request has an `Idempotency-Key`."""
    token: str | None = getattr(request.state, "idempotency_token", None)
    return token


TokenDep = Annotated[str | None, Depends(read_token)]


class IdempotentRoute(ScopedRoute):
    """A route whose POSTs that write are answered once an `Idempotency-Key`, however often they come."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with the key's answer before it and after it."""
        handle = super().get_route_handler()

        async def answer_once(request: Request) -> Response:
            key = request.headers.get("idempotency-key")
            tasks = _tasks(request)
            is_write = request.method == "POST" and declared_scope(self) in (Scope.WRITE, Scope.ADMIN)
            if key is None or not is_write or tasks is None:
                return await handle(request)
            if not _KEY.fullmatch(key):
                raise Malformed("Idempotency-Key must be 1 to 255 visible ASCII characters.")
            return await _answer_once(request, handle, tasks, key)

        return answer_once


async def _answer_once(
    request: Request, handle: Callable[[Request], Coroutine[Any, Any, Response]], tasks: Tasks, key: str
) -> Response:
    name, content = _caller_key(request, key), await asyncio.to_thread(_request_digest, request, await request.body())
    async with tasks.idempotency.claimed(name, content) as claim:
        if claim.answer is not None:
            headers = {**claim.answer.headers, "Idempotency-Replayed": "true"}
            return Response(claim.answer.body, status_code=claim.answer.status, headers=headers)
        request.state.idempotency_token = claim.token
        response = await handle(request)
        headers = {name: value for name, value in response.headers.items() if name in _KEPT_HEADERS}
        answer = Answer(status=response.status_code, headers=headers, body=bytes(response.body))
        await tasks.idempotency.keep(name, answer)
    return response


def _tasks(request: Request) -> Tasks | None:
    platform = platform_of(request)
    return None if platform.services is None else platform.services.tasks


def _caller_key(request: Request, key: str) -> str:
    """The key within its caller's own: two callers may choose the same."""
    caller = request.headers.get("authorization", ""), request.headers.get("x-api-key", "")
    return hashlib.sha256("\0".join([*caller, key]).encode("utf-8", "surrogatepass")).hexdigest()


def _request_digest(request: Request, body: bytes) -> str:
    """Address and body; the boundary of a form is another at each attempt and does not count."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    boundary = re.search(r'boundary="?([^";,]+)', parameters)
    if boundary is not None:
        body = body.replace(boundary[1].encode("latin-1"), b"")
    digest = hashlib.sha256(f"{request.url.path}?{request.url.query}\0{kind}\0".encode())
    digest.update(body)
    return digest.hexdigest()
