"""Request headers about the state that the caller expects: `If-Match` and `X-Min-Seq`."""

import re
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import Response

from app.api.deps import remaining_s_of, tasks_of
from app.errors import Malformed, PreconditionRequired

_TAG = re.compile(r'(?:W/)?"[^"]*"')
_VERSION_TAG = re.compile(r'(?:W/)?"(\d{1,18})"')
_SEQ = re.compile(r"\d{1,18}")
_NO_VERSION = -1
ANY_VERSION = range(1 << 62)
"""`If-Match: *`: any version, but the resource must exist."""


def set_version(response: Response, version: int, *, seq: int | None = None) -> None:
    """Add the headers of a versioned resource: `ETag` and, after a write, `X-Seq`."""
    response.headers["ETag"] = f'"{version}"'
    if seq is not None:
        response.headers["X-Seq"] = str(seq)


async def read_if_match(request: Request) -> Sequence[int] | None:
    """The versions that `If-Match` allows; None where the header is absent.

    Weak tags match too: proxies that compress make strong tags weak.

    Raises:
        Malformed: the header is neither `*` nor a list of entity tags.
    """
    header = request.headers.get("if-match")
    if header is None:
        return None
    if header.strip() == "*":
        return ANY_VERSION
    tags = [tag.strip() for tag in header.split(",")]
    if not all(_TAG.fullmatch(tag) for tag in tags):
        raise Malformed('If-Match must be "*" or a list of entity tags.')
    # A well-formed tag that no version has matches nothing; it is no error.
    found = [_VERSION_TAG.fullmatch(tag) for tag in tags]
    return [int(match[1]) if match else _NO_VERSION for match in found]


async def require_if_match(request: Request) -> Sequence[int] | None:
    """As `read_if_match`. Raises PreconditionRequired where the header is absent."""
    if "if-match" not in request.headers:
        raise PreconditionRequired("Send If-Match with the ETag of the version you change.")
    return await read_if_match(request)


IfMatchDep = Annotated[Sequence[int] | None, Depends(read_if_match)]
RequiredIfMatchDep = Annotated[Sequence[int] | None, Depends(require_if_match)]


async def wait_for_min_seq(request: Request) -> None:
    """Wait until this process has applied the write that `X-Min-Seq` names.

    Raises:
        Malformed: the header is not a number.
        DeadlineExceeded: the write did not arrive in time.
    """
    header = request.headers.get("x-min-seq")
    if header is None:
        return
    if not _SEQ.fullmatch(header):
        raise Malformed("X-Min-Seq must be a whole number.")
    # The rest of the deadline is for the read itself.
    await tasks_of(request).galleries.wait_for(int(header), timeout_s=0.9 * remaining_s_of(request))
