"""Every route declares its scope, refuses without a key, and reads no odd path."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIWebSocketRoute, iter_route_contexts

from app.api.auth import Scope, ScopedRoute, declared_scope, new_key, requires
from app.api.deps import Platform, Services
from app.api.middleware import QUIET_ROUTES
from app.main import check_scopes, create_app
from app.settings import Settings

pytestmark = pytest.mark.anyio
OPEN = {"/livez", "/readyz", "/startupz", "/healthz", "/health", "/errors/{code}", "/openapi.json", "/docs"}
OPEN |= {"/", "/playground/{name}", "/docs/{name}"}
PLACEHOLDER = re.compile(r"\{[^}]+\}")


def never_loads(settings: Settings, platform: Platform) -> Services:
    del settings, platform
    raise AssertionError("the app was not started")


def make_app(**settings: object) -> FastAPI:
    return create_app(Settings.model_validate(settings), never_loads)


def table(app: FastAPI) -> list[tuple[str, str, Scope | None]]:
    return [
        (method, context.path or "", declared_scope(context.original_route))
        for context in iter_route_contexts(app.routes)
        for method in sorted(context.methods or ())
    ]


ROUTES = table(make_app())
IDS = [f"{method} {path}" for method, path, _ in ROUTES]


@pytest.fixture
async def guarded() -> AsyncIterator[tuple[httpx.AsyncClient, dict[Scope, str]]]:
    """A client of an app with keys on, and a key of each scope."""
    made = {scope: new_key(scope.value, [scope]) for scope in (Scope.READ, Scope.WRITE, Scope.ADMIN)}
    app = make_app(api_keys=",".join(line for _, line in made.values()), metrics_token="m" * 16)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client, {scope: key for scope, (key, _) in made.items()}


def test_every_route_is_a_checked_one_and_declares_its_scope() -> None:
    for context in iter_route_contexts(make_app().routes):
        is_socket = isinstance(context.original_route, APIWebSocketRoute)
        # What checks a socket's key is its endpoint; `test_live.py` tries this one.
        assert isinstance(context.original_route, ScopedRoute) or context.path == "/retrieve/live", context.path
        assert is_socket is (context.path == "/retrieve/live")
        assert declared_scope(context.original_route) is not None, context.path
        # FastAPI would parse a body that an endpoint declares, without bounds.
        assert getattr(context.original_route, "body_field", None) is None, context.path


def test_only_health_and_the_contract_are_open() -> None:
    assert {path for _, path, scope in ROUTES if scope is Scope.OPEN} == OPEN


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES, ids=IDS)
def test_writes_need_more_than_read(method: str, path: str, scope: Scope) -> None:
    inference = path in ("/session", "/retrieve", "/embed", "/segment", "/fewshot/episodes/{episode_id}/classify")
    is_classify = path.endswith("/classify")
    if method in ("PUT", "PATCH", "DELETE") or (method == "POST" and not inference and not is_classify):
        assert scope in (Scope.WRITE, Scope.ADMIN)


def test_an_app_with_an_undeclared_route_is_refused() -> None:
    app, router = make_app(), APIRouter()

    @router.get("/forgotten")
    async def forgotten() -> None: ...

    app.include_router(router)
    with pytest.raises(ValueError, match="/forgotten"):
        check_scopes(app)


def test_an_app_with_a_route_that_is_not_checked_is_refused() -> None:
    app, router = make_app(), APIRouter()

    @router.get("/unchecked")
    @requires(Scope.READ)
    async def unchecked() -> None: ...

    app.include_router(router)
    with pytest.raises(ValueError, match="/unchecked"):
        check_scopes(app)


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES, ids=IDS)
async def test_without_a_key_every_route_but_the_open_ones_is_401(
    guarded: tuple[httpx.AsyncClient, dict[Scope, str]], method: str, path: str, scope: Scope
) -> None:
    client, keys = guarded
    address = PLACEHOLDER.sub("x", path)
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"X-API-Key": "é".encode()}):
        answer = await client.request(method, address, headers=headers)  # type: ignore[arg-type]  # bytes are fine
        assert (answer.status_code == 401) is (scope is not Scope.OPEN)
        if scope is not Scope.OPEN:
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["code"] == "unauthenticated"
    if scope in (Scope.WRITE, Scope.METRICS, Scope.ADMIN):
        answer = await client.request(method, address, headers={"X-API-Key": keys[Scope.READ]})
        assert answer.status_code == 403
    admin = await client.request(method, address, headers={"Authorization": f"Bearer {keys[Scope.ADMIN]}"})
    assert admin.status_code not in (401, 403)


async def test_the_metrics_token_opens_metrics_alone(guarded: tuple[httpx.AsyncClient, dict[Scope, str]]) -> None:
    client, _ = guarded
    headers = {"Authorization": "Bearer " + "m" * 16}
    assert (await client.get("/metrics", headers=headers)).status_code == 200
    assert (await client.get("/version", headers=headers)).status_code == 403


async def test_a_metrics_token_alone_leaves_the_rest_open() -> None:
    app = make_app(metrics_token="m" * 16)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/version")).status_code == 200


async def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    key, line = new_key("reader", [Scope.READ])
    path = tmp_path / "keys"
    path.write_text(f"# who may do what\n{line}  # a reader\n\n", encoding="utf-8")
    app = make_app(api_keys_file=path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/version")).status_code == 401
        assert (await client.get("/version", headers={"X-API-Key": key})).status_code == 200


@pytest.mark.parametrize("entry", ["secret", "name:read:abc", "name:all:" + "0" * 64, "na me:read:" + "0" * 64])
def test_malformed_keys_stop_the_start_and_are_not_repeated(entry: str) -> None:
    with pytest.raises(ValueError, match="entry 1") as caught:
        make_app(api_keys=entry)
    assert entry not in str(caught.value)


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES, ids=IDS)
async def test_dot_segments_and_encoded_separators_are_refused_on_every_route(
    method: str, path: str, scope: Scope
) -> None:
    """Raw targets, as a client that does not normalise them sends them."""
    del scope
    app = make_app()
    plain = PLACEHOLDER.sub("x", path)
    for odd in (
        f"/x/..{plain}", f"/.{plain}", f"/{plain}", f"{plain}//", f"{plain}/..", f"{plain}/%2e%2e", f"/%2E%2e{plain}",
        f"{plain}/a%2fb", f"{plain}/a%5Cb", f"{plain}/.%2e/", f"{plain}/%00", f"{plain}/a%0ab",
    ):  # fmt: skip
        assert await raw_status(app, method, odd.encode()) == 400, odd
    for item in ("..", "%2e%2e", "%2e", "."):
        target = PLACEHOLDER.sub(item, path)
        if target != path:
            assert await raw_status(app, method, target.encode()) == 400, target


async def raw_status(app: FastAPI, method: str, raw_path: bytes) -> int:
    from urllib.parse import unquote

    statuses: list[int] = []

    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(int(str(message["status"])))

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(raw_path.decode()), "raw_path": raw_path, "query_string": b"", "root_path": "",
        "headers": [(b"host", b"test")], "client": None, "server": ("test", 80),
    }  # fmt: skip
    await app(scope, receive, send)  # type: ignore[arg-type]  # plain dicts are ASGI messages
    return statuses[0]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES, ids=IDS)
async def test_an_unknown_query_parameter_is_422_and_named_except_where_probes_ask(
    method: str, path: str, scope: Scope
) -> None:
    del scope
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app()), base_url="http://test") as client:
        answer = await client.request(method, PLACEHOLDER.sub("x", path), params={"colour": "red"})
        if path in QUIET_ROUTES or path == "/":
            assert answer.status_code in (200, 503)
            return
        assert answer.status_code == 422
        assert [error["field"] for error in answer.json()["errors"]] == ["colour"]
        answer = await client.request(method, f"{PLACEHOLDER.sub('x', path)}?=red")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
        answer = await client.request(method, f"{PLACEHOLDER.sub('x', path)}?a=%ff")
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/galleries/default/items/a", "DELETE, GET, HEAD, PATCH, PUT"),
        ("PATCH", "/galleries/default", "DELETE, GET, HEAD, PUT"),
        ("GET", "/retrieve", "POST"),
        ("POST", "/livez", "GET, HEAD"),
    ],
)
async def test_a_405_names_every_method_of_the_path(method: str, path: str, allowed: str) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app()), base_url="http://test") as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
