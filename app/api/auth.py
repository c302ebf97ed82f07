"""API keys and scopes: every route declares the scope it needs, and a route that declares none is closed.

Keys are stored as SHA-256 digests and compared in constant time; they are long and random, so that a slow hash would
add nothing.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from app.api.middleware import QUIET_ROUTES
from app.api.sessions import COOKIE, Sessions
from app.errors import FieldError, Forbidden, Invalid, Malformed, Unauthenticated


class Scope(StrEnum):
    """What a route requires. A key with `write` may read too, and one with `admin` may do everything."""

    OPEN = "open"  # needs no key
    METRICS = "metrics"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


_GRANTS: dict[Scope, frozenset[Scope]] = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.WRITE: frozenset({Scope.READ, Scope.WRITE}),
    Scope.ADMIN: frozenset({Scope.READ, Scope.WRITE, Scope.ADMIN, Scope.METRICS}),
    Scope.METRICS: frozenset({Scope.METRICS}),
}
NO_KEY = "Send a known API key as `Authorization: Bearer …` or `X-API-Key: …`."
_LINE = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,64}):(?P<scopes>[a-z+]+):(?P<sha256>[0-9a-f]{64})")
_ATTRIBUTE = "__vermouth_scope__"
# Probes and scrapers may add parameters, against caches; the page at `/` reads its own in the browser.
_ANY_QUERY = QUIET_ROUTES | {"/"}
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def requires(scope: Scope) -> Callable[[Endpoint], Endpoint]:
    """Decorator that declares the scope of an endpoint; it goes below the route decorator."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ATTRIBUTE, scope)
        return endpoint

    return declare


def declared_scope(route: BaseRoute) -> Scope | None:
    """The scope that a route's endpoint declares, or None."""
    found = getattr(getattr(route, "endpoint", None), _ATTRIBUTE, None)
    return found if isinstance(found, Scope) else None


class ScopedRoute(APIRoute):
    """A route that checks the caller's key, then the names in the query.

    One with a parameter `signature` is also open to a signed address.
    """

    @cached_property
    def _query_names(self) -> frozenset[str]:
        return frozenset(_query_names_of(self.dependant))

    async def handle(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        needed = declared_scope(self)
        if needed is None:
            raise Forbidden("This route declares no scope and is closed.")
        keys: ApiKeys = scope["app"].state.platform.keys
        connection = HTTPConnection(scope)  # the body stays unread
        try:
            keys.authorise(connection, needed)
        except Unauthenticated:
            if b"signature=" not in scope["query_string"] or "signature" not in self._query_names:
                raise
            keys.sessions.check_signature(connection)
        if scope["query_string"] and scope["method"] in (self.methods or ()) and self.path not in _ANY_QUERY:
            check_query(scope["query_string"], self._query_names)
        await super().handle(scope, receive, send)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A stored key: its digest, never the key itself."""

    name: str
    sha256: str
    scopes: frozenset[Scope]


class ApiKeys:
    """All known keys. Without any, every caller may do everything (on loopback, or with `insecure`).

    A metrics token is a key with the scope `metrics` only; with no other key, all other routes stay open.

    Attributes:
        are_on: whether callers need a key.
        sessions: of browsers, which send a cookie or a signed address instead.
    """

    def __init__(self, keys: Iterable[ApiKey], allowed_origins: Iterable[str] = ()) -> None:
        self._keys = tuple(keys)
        self._names = {key.sha256: key.name for key in self._keys}
        self.sessions = Sessions(self._names, allowed_origins)
        self.are_on = any(key.scopes - {Scope.METRICS} for key in self._keys)

    def authorise(self, connection: HTTPConnection, needed: Scope) -> None:
        """Check the key in a connection's headers, or the session in its cookie.

        Raises:
            Unauthenticated: a key is required, and none or an unknown one was sent.
            Forbidden: the key lacks the scope, or a page of another site used the cookie.
            EngineUnavailable: a cookie cannot be checked yet.
        """
        # Metrics stay closed where only a metrics token is set.
        if needed is Scope.OPEN or not self._keys or (needed is not Scope.METRICS and not self.are_on):
            return
        presented = _presented(connection)
        if presented is None and COOKIE in connection.cookies:
            self.sessions.require_secret()
        digest = self.sessions.digest_of(connection) if presented is None else None
        if digest is None:
            self.authorise_key(presented, needed)
        else:
            self.sessions.check_origin(connection, has_cookie=True)
            self._check(digest, needed)

    def name_of(self, connection: HTTPConnection) -> str | None:
        """The name of the known key in a connection's headers, or of its session; None without one."""
        presented = _presented(connection)
        digest = self.sessions.digest_of(connection) if presented is None else sha256_hex(presented)
        return self._names.get(digest or "")

    def new_session(self, connection: HTTPConnection) -> str | None:
        """The cookie for the key in a connection's headers; None where keys are off.

        Raises:
            Unauthenticated: the caller has a session only, which does not prolong itself.
        """
        presented = _presented(connection)
        if not self.are_on:
            return None
        if presented is None:
            raise Unauthenticated("Send the key: a session does not prolong itself.")
        return self.sessions.issue(sha256_hex(presented))

    def authorise_key(self, presented: str | None, needed: Scope) -> str:
        """Check a key that was sent outside of the headers, and return its name. Raises as `authorise`."""
        if presented is None:
            raise Unauthenticated(NO_KEY)
        return self._check(sha256_hex(presented), needed)

    def _check(self, digest: str, needed: Scope) -> str:
        # No early exit: the time must not depend on which key matches.
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        if not found:
            raise Unauthenticated(NO_KEY)
        if needed not in found[-1].scopes:
            raise Forbidden(f"The API key lacks the scope {needed.value!r}.")
        return found[-1].name


def check_query(query: bytes, known: Set[str]) -> None:
    """Refuse a misspelt parameter, which would be ignored silently, and text that is not UTF-8.

    Raises:
        Malformed: the query is not percent-encoded UTF-8.
        Invalid: it has a parameter that is not among the known ones.
    """
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError as err:
        raise Malformed("The query is not percent-encoded UTF-8.") from err
    unknown = next((name for name, _ in pairs if name not in known), None)
    if unknown is not None:
        allowed = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
        name = unknown[:100]
        message = f"is no query parameter of this route: {allowed}"
        raise Invalid(f"{name!r} {message}.", errors=[FieldError(field=name, message=message)])


def parse_keys(text: str) -> list[ApiKey]:
    """The keys in lines or comma-separated entries `name:scope+scope:sha256-hex`; `#` starts a comment.

    Raises:
        ValueError: an entry has another form or an unknown scope; the message does not repeat the entry.
    """
    lines = [line.split("#", 1)[0] for line in text.splitlines()]
    entries = [entry.strip() for line in lines for entry in line.split(",") if entry.strip()]
    return [_parse_key(entry, number) for number, entry in enumerate(entries, start=1)]


def new_key(name: str, scopes: Iterable[Scope]) -> tuple[str, str]:
    """A new random key, and its entry for the settings."""
    key = "vm_" + secrets.token_urlsafe(32)
    digest = sha256_hex(key)
    # The prefix makes leaked keys recognizable to secret scanners.
    return key, f"{name}:{'+'.join(scope.value for scope in scopes)}:{digest}"


def sha256_hex(key: str) -> str:
    """The digest that is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()  # JSON may hold lone surrogates


def _parse_key(entry: str, number: int) -> ApiKey:
    match = _LINE.fullmatch(entry)
    words = match["scopes"].split("+") if match else []
    # The message names the position only: an entry may hold a key by mistake.
    if match is None or not set(words) <= {scope.value for scope in _GRANTS}:
        raise ValueError(f"API key entry {number} is not of the form name:read+write+admin:sha256-hex")
    granted = frozenset[Scope]().union(*(_GRANTS[Scope(word)] for word in words))
    return ApiKey(name=match["name"], sha256=match["sha256"], scopes=granted)


def _query_names_of(dependant: Dependant) -> Iterator[str]:
    """Names of the query parameters that an endpoint and its dependencies take, singly or as fields of a model."""
    for field in dependant.query_params:
        fields: Iterable[str] | None = getattr(field.field_info.annotation, "model_fields", None)
        yield from (field.alias,) if fields is None else fields
    for inner in dependant.dependencies:
        yield from _query_names_of(inner)


def _presented(connection: HTTPConnection) -> str | None:
    if header := connection.headers.get("x-api-key"):
        return header.strip()
    kind, _, value = connection.headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" and value.strip() else None
