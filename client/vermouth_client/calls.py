"""A call as a value, and the descriptor that makes one definition a method of both clients."""

import json
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload
from urllib.parse import quote

import httpx

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request and what becomes of its answer; clients send it, again where that does nothing twice.

    Attributes:
        path: relative to the base URL.
        parse: of a successful response.
        is_repeatable: whether it may be sent again though its answer was lost. A change under `If-Match` may not: it
            would not be done twice, but its own success would read as another's change.
        target: the file that the body is written to.
    """

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    params: Mapping[str, str | int | bool] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    is_repeatable: bool = True
    target: Path | None = None

    @property
    def is_write(self) -> bool:
        """Whether it changes anything: a POST does where it carries an idempotency key."""
        return self.method not in ("GET", "POST") or "Idempotency-Key" in self.headers


def call(
    parse: Callable[[httpx.Response], T],
    method: str,
    *path: str,
    params: Mapping[str, Any] | None = None,
    body: Mapping[str, Any] | bytes | None = None,
    media_type: str = "application/json",
    accept: str = "application/json",
    version: int | None = None,
    writes: bool = False,
    target: Path | None = None,
) -> Call[T]:
    """The call of a route.

    Args:
        path: segments, quoted here.
        params, body: members that are None are left out; bytes are of the `media_type` already.
        version: for `If-Match`.
        writes: whether a POST writes, and so takes an idempotency key.
    """
    # An empty or a dot segment is collapsed on the way: it would be another route.
    if not all(segment.strip(".") for segment in path):
        raise ValueError(f"{path!r} holds a name that is empty or dots.")
    headers = {"Accept": accept}
    if body is not None:
        headers["Content-Type"] = media_type
    if version is not None:
        headers["If-Match"] = f'"{version}"'
    if writes:
        headers["Idempotency-Key"] = uuid.uuid4().hex
    return Call(
        method=method,
        path="/".join(quote(segment, safe=":") for segment in path),
        parse=parse,
        params=given(params or {}),
        headers=headers,
        content=json_of(given(body)) if isinstance(body, Mapping) else body,
        is_repeatable=writes or version is None,
        target=target,
    )


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def json_of(value: Any) -> bytes:
    """JSON, of NumPy's numbers and arrays too. Raises TypeError and ValueError for what JSON does not have."""
    return json.dumps(value, allow_nan=False, default=_plain).encode()


def _plain(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        raise TypeError(f"{type(value).__name__} has no form in JSON.")
    return value.tolist()


class Sender(Protocol):
    """A blocking client."""

    def run(self, plan: Callable[[], Call[T]]) -> T:
        """Plan a call and send it. Raises as the plan, and VermouthError."""


class AsyncSender(Protocol):
    """A client for asyncio."""

    async def run(self, plan: Callable[[], Call[T]]) -> T:
        """As `Sender.run`."""


class route(Generic[P, T]):  # noqa: N801 - a decorator
    """Makes a function that plans a call a method that also sends it: blocking or awaitable, as its client is."""

    def __init__(self, plan: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self.plan = plan
        self.__doc__ = plan.__doc__

    @overload
    def __get__(self, client: None, owner: object) -> "route[P, T]": ...
    @overload
    def __get__(self, client: Sender, owner: object) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncSender, owner: object) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: Any, owner: object) -> Any:
        if client is None:
            return self
        plan = MethodType(self.plan, client)

        @wraps(plan)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.run(partial(plan, *args, **kwargs))

        return method
