"""What browsers need: allowed origins, sessions, signed addresses, HEAD, 304, and links below a prefix."""

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.requests import HTTPConnection

from app.api import sessions
from app.api.auth import Scope, new_key
from app.api.sessions import Sessions
from app.api.transport.forwarded import ForwardedHeaders
from app.errors import Forbidden
from app.main import create_app
from app.settings import Settings
from tests.app.api.conftest import build_services
from tests.app.api.images import png
from tests.app.api.test_routes import make_app

pytestmark = pytest.mark.anyio
PAGE = "http://localhost:3000"


def connected(app: object, **options: object) -> httpx.AsyncClient:
    base = {"transport": httpx.ASGITransport(app), "base_url": "http://test"}  # type: ignore[arg-type]  # an ASGI app
    return httpx.AsyncClient(**{**base, **options})  # type: ignore[arg-type]


# Origins


def connection(origin: str | None, host: str) -> HTTPConnection:
    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin is not None else [])]
    return HTTPConnection({"type": "websocket", "headers": headers})


@pytest.mark.parametrize(
    ("host", "origin", "is_own"),
    [
        ("10.0.0.5:8000", "https://app.example", False),
        ("app.example", "https://app.example:8443", False),
        ("app.example:443", "https://app.example", True),
        ("app.example", "https://app.example:443", True),
        ("app.example:80", "https://app.example", False),
        ("app.example", "http://app.example", True),
        ("APP.example", "http://app.Example", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("[::1]:8000", "http://[::1]", False),
        ("127.0.0.1:8000", "null", False),
        ("127.0.0.1:8000", None, True),
        ("127.0.0.1:8000", "", False),
        ("", "http://app.example", False),
        ("app.example", "http://[::1", False),
        ("app.example", "http://app.example:99999", False),
        ("app.example", "file://", False),
        ("app.example", "http://app.example.evil", False),
    ],
)
def test_the_services_own_origin_is_known_by_host_and_port(host: str, origin: str | None, is_own: bool) -> None:
    if is_own:
        Sessions([], []).check_origin(connection(origin, host))
        return
    with pytest.raises(Forbidden) as caught:
        Sessions([], []).check_origin(connection(origin, host))
    assert repr(origin) in caught.value.detail
    assert repr(host) in caught.value.detail
    assert len(caught.value.detail) <= 123 or len(origin or "") + len(host) > 40
    if origin:
        Sessions([], [origin]).check_origin(connection(origin, host))


def test_a_long_origin_leaves_room_for_the_reason_of_a_close_frame() -> None:
    with pytest.raises(Forbidden) as caught:
        Sessions([], []).check_origin(connection("https://" + "a" * 500, "b" * 500))
    assert len(caught.value.detail.encode()) < 180


@pytest.mark.parametrize("text", ["app.example", "https://app.example/path", "https://", "http://a:b:c", "https://a b"])
def test_what_is_no_origin_stops_the_start(text: str) -> None:
    with pytest.raises(ValidationError, match="allowed_origins"):
        Settings.model_validate({"allowed_origins": text})


def test_origins_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERMOUTH_ALLOWED_ORIGINS", f"{PAGE}, https://App.example:443,")
    assert Settings().allowed_origins == (PAGE, "https://App.example:443")
    assert Sessions([], Settings().allowed_origins).allowed_origins == {PAGE, "https://app.example"}


async def test_a_preflight_of_an_allowed_page_passes_without_a_key() -> None:
    _, line = new_key("reader", [Scope.READ])
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-api-key",
    }
    async with connected(make_app(api_keys=line, allowed_origins=PAGE)) as client:
        answer = await client.options("/retrieve", headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-api-key" in answer.headers["access-control-allow-headers"]
        other = await client.options("/retrieve", headers={**asked, "Origin": "http://elsewhere.example"})
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers
    async with connected(make_app()) as client:
        assert (await client.options("/retrieve", headers=asked)).status_code == 405


async def test_errors_can_be_read_by_an_allowed_page() -> None:
    _, line = new_key("reader", [Scope.READ])
    async with connected(make_app(api_keys=line, allowed_origins=PAGE)) as client:
        for method, path, status in (("GET", "/version", 401), ("GET", "/nowhere", 404), ("GET", "/a//b", 400)):
            answer = await client.request(method, path, headers={"Origin": PAGE})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == PAGE
            exposed = answer.headers["access-control-expose-headers"]
            assert {"X-Seq", "ETag", "Location", "Retry-After", "X-Request-ID"} <= set(exposed.split(", "))
        answer = await client.get("/livez", headers={"Origin": "http://elsewhere.example"})
        assert "access-control-allow-origin" not in answer.headers


# Sessions and signed addresses


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[tuple[FastAPI, str]]:
    """An app with keys on and a page's origin allowed, and a key that may write."""
    key, line = new_key("writer", [Scope.WRITE])
    settings = Settings.model_validate({"data_dir": tmp_path, "api_keys": line, "allowed_origins": PAGE})
    app = create_app(settings, build_services)
    async with app.router.lifespan_context(app):
        await app.state.supervisor.settled()
        yield app, key


async def added(client: httpx.AsyncClient, key: str) -> dict[str, str]:
    """The item of one image."""
    answer = await client.post("/galleries/default/items", files=[("image", png())], headers={"X-API-Key": key})
    assert answer.status_code == 200, answer.text
    address = f"/galleries/default/items/{answer.json()['results'][0]['id']}"
    return dict((await client.get(address, headers={"X-API-Key": key})).json())


async def test_an_image_opens_by_its_signed_address_until_it_expires(
    guarded: tuple[FastAPI, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, key = guarded
    async with connected(app) as client:
        address = (await added(client, key))["image_url"]
        assert (await client.get(address)).status_code == 200
        assert (await client.get(f"{address}&size=16")).headers["content-type"] == "image/webp"
        plain = address.partition("?")[0]
        query = address.partition("?")[2]
        for bad in (plain, f"{plain}?{query}0", address.replace("expires=", "expires=1"), f"{plain}?signature=a"):
            assert (await client.get(bad)).status_code == 401, bad
        for other in ("/galleries/default/items", "/version", "/galleries/default/items/other/image"):
            assert (await client.get(f"{other}?{query}")).status_code == 401
        later = time.time() + 2 * 3600
        monkeypatch.setattr(time, "time", lambda: later)
        answer = await client.get(address)
        assert answer.status_code == 401
        assert "image_url" in answer.json()["detail"]
        assert (await client.get(address, headers={"X-API-Key": key})).status_code == 200


async def test_every_answer_with_an_image_signs_it(guarded: tuple[FastAPI, str]) -> None:
    app, key = guarded
    async with connected(app, headers={"X-API-Key": key}) as client:
        await added(client, key)
        way = {"support": [{"svg": "<svg width='9' height='9'><path d='M1 1 8 8' stroke='red'/></svg>"}]}
        episode = await client.post("/fewshot/episodes", json={"ways": [{"label": "a", **way}, {"label": "b", **way}]})
        texts = [
            episode.text,
            (await client.post("/retrieve", json={"text": "a"})).text,
            (await client.get("/galleries/default/items")).text,
            (await client.get("/galleries/default/export")).text,
        ]
    async with connected(app) as client:
        for text in texts:
            (address, *_) = re.findall(r'"image_url": ?"([^"]+)"', text)
            assert (await client.get(address)).status_code == 200, address


async def test_a_key_buys_a_cookie_that_scripts_cannot_read(guarded: tuple[FastAPI, str]) -> None:
    app, key = guarded
    async with connected(app) as client:
        assert (await client.post("/session")).status_code == 401
        answer = await client.post("/session", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 204
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=28800"} <= set(cookie.split("; "))
        assert key not in cookie
        assert (await client.get("/version")).status_code == 200  # httpx sends the cookie
        assert (await client.get("/version", headers={"Origin": PAGE})).status_code == 200
        assert (await client.get("/version", headers={"Origin": "http://elsewhere.example"})).status_code == 403
        assert (await client.post("/session")).status_code == 401  # it does not prolong itself
        assert (await client.get("/version", headers={"X-API-Key": "wrong"})).status_code == 401
        assert (await client.put("/galleries/g")).status_code == 201


async def test_every_origin_is_allowed_but_none_with_a_cookie(tmp_path: Path) -> None:
    key, line = new_key("writer", [Scope.WRITE])
    app = create_app(Settings(data_dir=tmp_path, api_keys=line, allowed_origins="*"), build_services)
    elsewhere = {"Origin": "http://elsewhere.example"}
    async with app.router.lifespan_context(app), connected(app) as client:
        await app.state.supervisor.settled()
        assert (await client.get("/version", headers={**elsewhere, "X-API-Key": key})).status_code == 200
        await client.post("/session", headers={"X-API-Key": key})
        assert (await client.get("/version")).status_code == 200
        assert (await client.get("/version", headers=elsewhere)).status_code == 403
        files = {"image": ("a.png", png(), "image/png")}  # a form needs no preflight
        assert (await client.post("/galleries/default/items", files=files, headers=elsewhere)).status_code == 403


async def test_what_cannot_be_checked_yet_is_503(tmp_path: Path) -> None:
    key, line = new_key("writer", [Scope.WRITE])
    async with connected(make_app(data_dir=tmp_path, api_keys=line)) as client:
        image = "/galleries/default/items/a/image?expires=9&signature=a"
        cookie = {"Cookie": f"{sessions.COOKIE}=a.b.c"}
        for answer in (
            await client.post("/session", headers={"X-API-Key": key}),
            await client.get("/galleries", headers=cookie),
            await client.get(image),
            await client.get("/galleries", headers={"X-API-Key": key}),
        ):
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True), answer.text
            assert "set-cookie" not in answer.headers
        assert (await client.get("/galleries")).status_code == 401


async def test_a_write_is_done_once_by_key_and_by_session(guarded: tuple[FastAPI, str]) -> None:
    app, key = guarded
    once = {"Idempotency-Key": "once"}
    async with connected(app) as client:
        files = {"image": ("a.png", png(), "image/png")}
        first = await client.post("/galleries/default/items", files=files, headers={**once, "X-API-Key": key})
        await client.post("/session", headers={"X-API-Key": key})
        for headers in ({"X-API-Key": key}, {}, {"Authorization": f"Bearer {key}"}):
            again = await client.post("/galleries/default/items", files=files, headers={**once, **headers})
            assert (again.json(), again.headers["idempotency-replayed"]) == (first.json(), "true")


async def test_a_cookie_ends_with_its_time_its_key_and_a_changed_letter(
    guarded: tuple[FastAPI, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, key = guarded
    secret: bytes = app.state.platform.keys.sessions.secret
    async with connected(app) as client:
        await client.post("/session", headers={"X-API-Key": key})
        cookie = client.cookies[sessions.COOKIE]
        name, ends_at, mac = cookie.split(".")
        for bad in (f"{name}.{int(ends_at) + 1}.{mac}", f"{name}.{ends_at}.{mac[:-1]}", f"{name}.{ends_at}", "", "é"):
            sent = {b"Cookie": f"{sessions.COOKIE}={bad}".encode()}
            assert (await client.get("/version", headers=sent)).status_code == 401, bad
        # The same secret, but the key was removed.
        other = Sessions(["0" * 64], [])
        other.secret = secret
        headers = [(b"cookie", f"{sessions.COOKIE}={cookie}".encode())]
        assert other.digest_of(HTTPConnection({"type": "http", "headers": headers})) is None
        later = time.time() + sessions.SESSION_S + 1
        monkeypatch.setattr(time, "time", lambda: later)
        assert (await client.get("/version")).status_code == 401


async def test_the_secret_survives_a_restart(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        app = create_app(Settings(data_dir=tmp_path), build_services)
        async with app.router.lifespan_context(app):
            await app.state.supervisor.settled()
            found.append(app.state.platform.keys.sessions.secret)
            async with connected(app) as client:
                answer = await client.post("/session")
                assert (answer.status_code, "set-cookie" in answer.headers) == (204, False)
    assert found[0] == found[1]
    assert len(found[0]) == 32


# HEAD and 304


@pytest.mark.parametrize(
    "path",
    ["/livez", "/readyz", "/startupz", "/healthz", "/health", "/version", "/metrics", "/bundle", "/openapi.json",
     "/docs", "/", "/galleries", "/galleries/default", "/galleries/default/items", "/galleries/default/export",
     "/galleries/default/export?format=webdataset", "/class-sets", "/fewshot/episodes", "/errors/invalid", "/nowhere"],
)  # fmt: skip
async def test_head_answers_as_get_does_without_a_body(client: httpx.AsyncClient, path: str) -> None:
    await client.post("/galleries/default/items", files=[("image", png())])
    whole, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    varies = {"x-request-id", "server-timing"} | ({"content-length"} if path == "/metrics" else set())
    assert {n: v for n, v in head.headers.items() if n not in varies} == {
        n: v for n, v in whole.headers.items() if n not in varies
    }


async def test_head_of_a_service_that_loads_is_503() -> None:
    async with connected(make_app()) as client:
        assert [(await client.head(path)).status_code for path in ("/readyz", "/startupz")] == [503, 503]
        assert (await client.head("/retrieve")).status_code == 405


async def test_what_may_be_cached_is_sent_once(client: httpx.AsyncClient) -> None:
    await client.put("/galleries/default/items/a", files={"image": png()})
    item = "/galleries/default/items/a"
    for path in (f"{item}/image", f"{item}/image?size=16", "/playground/main.js"):
        whole = await client.get(path)
        tag = whole.headers["etag"]
        if "image" in path:
            assert whole.headers["cache-control"] == "private, no-cache"
        for known in (tag, f'W/{tag}, "other"', f'"other",{tag}', "*"):
            for method in ("GET", "HEAD"):
                answer = await client.request(method, path, headers={"If-None-Match": known})
                assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag), (path, known)
                assert "content-type" not in answer.headers
        assert (await client.get(path, headers={"If-None-Match": '"other"'})).content == whole.content
    await client.put(item, files={"image": png(colour=(9, 9, 9))})
    assert (await client.get(f"{item}/image", headers={"If-None-Match": tag})).status_code == 200
    assert (await client.get("/galleries/default/items/b", headers={"If-None-Match": "*"})).status_code == 404


@pytest.mark.parametrize("path", ["/", "/playground/style.css", "/playground/main.js", "/playground/icon.svg"])
async def test_the_playgrounds_text_is_compressed_for_whom_it_may_be(client: httpx.AsyncClient, path: str) -> None:
    plain = await client.get(path, headers={"Accept-Encoding": "identity"})
    packed = await client.get(path, headers={"Accept-Encoding": "gzip, br"})
    assert packed.content == plain.content
    assert (plain.headers.get("content-encoding"), packed.headers["content-encoding"]) == (None, "gzip")
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"])
    assert plain.headers["etag"] != packed.headers["etag"]  # they are different bytes
    for header in ("content-type", "cache-control", "vary", "content-security-policy"):
        assert plain.headers.get(header) == packed.headers.get(header)


async def test_a_version_for_if_match_does_not_stand_for_the_body(guarded: tuple[FastAPI, str]) -> None:
    """An item's signed address expires and its fingerprint may change, at one version."""
    app, key = guarded
    async with connected(app, headers={"X-API-Key": key}) as client:
        await client.put("/galleries/default/items/a", files={"image": png()})
        whole = await client.get("/galleries/default/items/a")
        again = await client.get("/galleries/default/items/a", headers={"If-None-Match": whole.headers["etag"]})
        assert (again.status_code, again.json()["id"]) == (200, "a")
        stored = await client.put(
            "/galleries/default/items/a", files={"image": png()}, headers={"If-Match": whole.headers["etag"]}
        )
        assert stored.status_code == 200


# Behind a proxy


async def test_every_link_stays_below_the_prefix_of_a_trusted_proxy(app: FastAPI) -> None:
    proxied = ForwardedHeaders(app, root_path="", trusted_proxies="127.0.0.1")
    sent = {"X-Forwarded-Prefix": "/vermouth/", "X-Forwarded-Proto": "https", "X-Forwarded-For": "198.51.100.7"}
    support = {"svg": "<svg width='9' height='9'><path d='M1 1 8 8' stroke='red'/></svg>"}
    body = {"ways": [{"label": "a", "support": [support]}, {"label": "b", "support": [support]}]}
    async with connected(proxied, headers=sent) as client:
        await client.put("/galleries/default/items/a", files={"image": png()})
        results = (await client.post("/retrieve", json={"text": "a"})).json()["results"]
        episode = await client.post("/fewshot/episodes", json=body)
        problem = (await client.get("/galleries/none")).json()
        found = [
            results[0]["image_url"],
            episode.headers["location"],
            episode.json()["ways"][0]["support"][0]["image_url"],
            problem["type"],
            problem["instance"],
        ]
        assert [one.split("/")[1] for one in found] == ["vermouth"] * len(found), found
        assert (await client.get("/openapi.json")).json()["servers"] == [{"url": "/vermouth"}]
        assert "/vermouth" not in (await client.get("/docs")).text  # its addresses are relative
    async with connected(ForwardedHeaders(app, root_path="/fixed", trusted_proxies="127.0.0.1")) as client:
        assert (await client.get("/galleries/none")).json()["instance"] == "/fixed/galleries/none"
        for bad in ("//evil.example", "javascript:", "/a b", "/" + "a" * 200, "/é"):
            answer = await client.get("/galleries/none", headers={b"X-Forwarded-Prefix": bad.encode()})
            assert answer.json()["instance"] == "/fixed/galleries/none"


async def test_a_prefix_of_a_stranger_is_ignored(app: FastAPI) -> None:
    transport = httpx.ASGITransport(
        ForwardedHeaders(app, root_path="", trusted_proxies="127.0.0.1"), client=("198.51.100.7", 1)
    )
    async with connected(None, transport=transport, headers={"X-Forwarded-Prefix": "/evil"}) as client:
        assert (await client.get("/galleries/none")).json()["instance"] == "/galleries/none"
