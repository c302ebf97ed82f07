"""What a proxy in front of the service says of a request: its client, its scheme, and the prefix of its path."""

import re
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_PREFIX = re.compile(rb"(?:/[A-Za-z0-9._~-]{1,100}){1,8}")


class ForwardedHeaders:
    """Takes a request's client and scheme from a trusted proxy, and the prefix below which it publishes the service.

    The prefix is `state.prefix`, by default the setting. Paths stay as they are without it: the proxy strips it.
    """

    def __init__(self, app: ASGIApp, *, root_path: str, trusted_proxies: str) -> None:
        # uvicorn and starlette type the same interface in two ways.
        self._proxies = cast(Any, ProxyHeadersMiddleware)(app, trusted_proxies)
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the layer as an ASGI app."""
        if scope["type"] != "lifespan":
            state, client = scope.setdefault("state", {}), scope.get("client")
            state["prefix"] = self._root_path
            for name, value in scope["headers"]:
                is_prefix = name == b"x-forwarded-prefix" and _PREFIX.fullmatch(value.rstrip(b"/"))
                if is_prefix and client and client[0] in self._proxies.trusted_hosts:
                    state["prefix"] = value.rstrip(b"/").decode()
        await self._proxies(scope, receive, send)
