"""A call as a value, and the descriptor that makes one definition a method of both clients."""

import json
import uuid
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload
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


Plan = Call[T] | Generator[Call[Any], Any, T]
"""A call, or a generator of calls that is sent their answers and returns the result."""


def call(
    parse: Callable[[httpx.Response], T],
    method: str,
    *path: str,
    params: Mapping[str, Any] | None = None,
    body: Mapping[str, Any] | Sequence[Any] | None = None,
    nulls: Sequence[str] = (),
    accept: str = "application/json",
    version: int | None = None,
    writes: bool = False,
    target: Path | None = None,
) -> Call[T]:
    """The call of a route.

    Args:
        path: segments, quoted here.
        params, body: members that are None are left out of both, but for those of the body in `nulls`.
        version: for `If-Match`.
        writes: whether a POST writes, and so takes an idempotency key.
    """
    # An empty or a dot segment is collapsed on the way: it would be another route.
    if not all(segment.strip(".") for segment in path):
        raise ValueError(f"{path!r} holds a name that is empty or dots.")
    headers = {"Accept": accept}
    content = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        members = {**_given(body), **dict.fromkeys(nulls)} if isinstance(body, Mapping) else body
        content = json.dumps(members, allow_nan=False).encode()
    if version is not None:
        headers["If-Match"] = f'"{version}"'
    if writes:
        headers["Idempotency-Key"] = uuid.uuid4().hex
    return Call(
        method=method,
        path="/".join(quote(segment, safe=":") for segment in path),
        parse=parse,
        params=_given(params or {}),
        headers=headers,
        content=content,
        is_repeatable=writes or version is None,
        target=target,
    )


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class SyncSender:
    """What sends the calls of a blocking client."""

    def send(self, call: Call[T]) -> T:
        """The answer of a call. Raises VermouthError."""
        raise NotImplementedError

    def run(self, plan: Plan[T]) -> T:
        """The result of a plan. Raises as `send`."""
        if isinstance(plan, Call):
            return self.send(plan)
        answer: Any = None
        while True:
            try:
                step = plan.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = self.send(step)


class AsyncSender:
    """What sends the calls of a client for asyncio."""

    async def send(self, call: Call[T]) -> T:
        """The answer of a call. Raises VermouthError."""
        raise NotImplementedError

    async def run(self, plan: Plan[T]) -> T:
        """The result of a plan. Raises as `send`."""
        if isinstance(plan, Call):
            return await self.send(plan)
        answer: Any = None
        while True:
            try:
                step = plan.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = await self.send(step)


class route(Generic[P, T]):  # noqa: N801 - a decorator
    """Makes a function that plans calls a method that also sends them: blocking or awaitable, as its client is."""

    def __init__(self, plan: Callable[Concatenate[Any, P], Plan[T]]) -> None:
        self.plan = plan
        self.__doc__ = plan.__doc__

    @overload
    def __get__(self, client: None, owner: object) -> "route[P, T]": ...
    @overload
    def __get__(self, client: SyncSender, owner: object) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncSender, owner: object) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: Any, owner: object) -> Any:
        if client is None:
            return self
        plan = MethodType(self.plan, client)

        @wraps(plan)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.run(plan(*args, **kwargs))

        return method
