"""What probes, browsers and proxies send around a request: methods, origins, prefixes and content codings."""

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.requests import HTTPConnection

from app.api.auth import Scope, new_key
from app.api.sessions import Sessions
from app.api.transport.forwarded import ForwardedHeaders
from app.errors import Forbidden
from app.main import create_app
from app.settings import Settings
from tests.app.api.conftest import build_services
from tests.app.api.images import BAR, CROSS, png
from tests.app.api.test_routes import make_app

Random = np.random.Generator
pytestmark = pytest.mark.anyio
SECRET = new_key("reader", [Scope.READ])
PORTS = {"http": 80, "https": 443}
OF_THE_REQUEST = {"x-request-id", "server-timing", "date"}
CODINGS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FastAPI]:
    """A service with two items, an episode and a class set."""
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("data")), build_services)
    async with app.router.lifespan_context(app), connected(app) as client:
        await app.state.supervisor.settled()
        for name in ("a", "b"):
            assert (await client.put(f"/galleries/default/items/{name}", files={"image": png()})).status_code == 201
        ways = [{"label": "a", "support": [BAR]}, {"label": "b", "support": [CROSS]}]
        assert (await client.post("/fewshot/episodes", json={"ways": ways})).status_code == 201
        assert (await client.put("/class-sets/s", json={"classes": ["a", "b"]})).status_code == 201
        yield app


def connected(app: object, **options: object) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]  # an ASGI app
    return httpx.AsyncClient(transport=transport, base_url="http://test", **options)  # type: ignore[arg-type]


def word(random: Random) -> str:
    return "".join(random.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), int(random.integers(1, 9))))


async def addresses(client: httpx.AsyncClient) -> list[str]:
    """The address of every GET of the document, of things that exist."""
    episode = (await client.get("/fewshot/episodes")).json()["episodes"][0]["id"]
    support = (await client.get(f"/fewshot/episodes/{episode}")).json()["ways"][0]["support"][0]["id"]
    names = {"{name}": "default", "{item_id}": "a", "{episode_id}": episode, "{support_id}": support}
    names |= {"{code}": "invalid", "{job_id}": "job_" + "0" * 24}
    found = []
    for path, methods in (await client.get("/openapi.json")).json()["paths"].items():
        for mark, value in names.items():
            path = path.replace(mark, "s" if "class-sets" in path and mark == "{name}" else value)
        found += [path] if "get" in methods and "live" not in path else []
    return found


async def test_13_head_is_get_without_a_body(random: Random, app: FastAPI) -> None:
    async with connected(app) as client:
        for path in random.permutation(await addresses(client)).tolist():
            query = "?field=kind" if path.endswith("facets") else random.choice(["", "?limit=1", f"?x={word(random)}"])
            headers = {"Accept": str(random.choice(["*/*", "application/json", "image/*;q=0.5"]))}
            if random.integers(2):
                headers["If-None-Match"] = str(random.choice(["*", '"1"', f'"{word(random)}"']))
            whole = await client.get(path + str(query), headers=headers)
            head = await client.head(path + str(query), headers=headers)
            assert (head.status_code, head.content) == (whole.status_code, b""), path
            varies = OF_THE_REQUEST | ({"content-length"} if path == "/metrics" or whole.is_error else set())
            sent, expected = ({*one.headers.items()} for one in (head, whole))
            assert {one for one in sent ^ expected if one[0] not in varies} == set(), path


def test_14_a_pages_origin_is_the_services_own_by_host_and_port(random: Random) -> None:
    hosts = [f"{word(random)}.example", "10.0.0.5", "[::1]", "localhost", f"{word(random)}.{word(random)}.example"]
    for _ in range(50):
        scheme, port, other_port = random.choice(["http", "https"]), *random.choice([0, 80, 443, 3000, 8443], 2)
        host = str(random.choice(hosts))
        other = str(random.choice([host, host.upper(), f"{host}.evil", f"evil-{host}", random.choice(hosts)]))
        origin = f"{scheme}://{host}" + (f":{port}" if port else "")
        sent = other + (f":{other_port}" if other_port else "")
        is_own = host == other.lower() and (port or PORTS[scheme]) == (other_port or PORTS[scheme])
        headers = [(b"host", sent.encode()), (b"origin", origin.encode())]
        connection = HTTPConnection({"type": "websocket", "headers": headers})
        if is_own:
            Sessions([], []).check_origin(connection)
            continue
        with pytest.raises(Forbidden) as caught:
            Sessions([], []).check_origin(connection)
        assert len(caught.value.detail.encode()) <= 180
        # The same origin, with its default port written or not.
        plain = origin.removesuffix(f":{PORTS[scheme]}")
        for allowed in (origin, origin.upper(), plain, *([f"{plain}:{PORTS[scheme]}"] if not port else [])):
            Sessions([], [allowed]).check_origin(connection)


def linked(node: object) -> Iterator[str]:
    """Every text of an answer that is an address of the service."""
    if isinstance(node, dict | list):
        for one in node.values() if isinstance(node, dict) else node:
            yield from linked(one)
    elif isinstance(node, str) and node.startswith("/"):
        yield node


async def test_15_every_address_of_an_answer_is_below_the_prefix(random: Random, app: FastAPI) -> None:
    endings = random.choice(["", "-x", ".y", "_z", "~"], int(random.integers(1, 5)))
    prefix = "".join(f"/{word(random)}{ending}" for ending in endings)
    by_header = bool(random.integers(2))
    proxied = ForwardedHeaders(app, root_path="" if by_header else prefix, trusted_proxies="127.0.0.1")
    headers = {"X-Forwarded-Prefix": prefix + random.choice(["", "/"])} if by_header else {}
    async with connected(proxied, headers=headers) as client:
        ways = [{"label": "a", "support": [BAR]}, {"label": "b", "support": [CROSS]}]
        made = await client.post("/fewshot/episodes", json={"ways": ways})
        answers = [made, await client.post("/retrieve", json={"text": "a"}), await client.post("/retrieve", json={})]
        answers += [await client.get(path) for path in await addresses(client)]
        answers += [await client.get(f"/{word(random)}/x"), await client.post("/segment", content=b"{")]
        found = [made.headers["location"]]
        for answer in answers:
            if answer.headers["content-type"] in ("application/json", "application/problem+json"):
                body = answer.json()
                found += [f"{body['servers'][0]['url']}/"] if "openapi" in body else linked(body)
            if answer.headers["content-type"] == "application/x-ndjson":
                found += linked([json.loads(line) for line in answer.text.splitlines()])
        assert len(found) > 15
        assert [one for one in found if not one.startswith(f"{prefix}/")] == []
        assert (await client.get(found[0].removeprefix(prefix))).status_code == 200


async def test_16_pages_of_allowed_origins_read_everything_and_others_nothing(random: Random) -> None:
    scheme, host = random.choice(["http", "https"]), f"{word(random)}.example"
    port = random.choice(["", ":3000", ":8443"])
    page = f"{scheme}://{host}{port}"
    strangers = ["null", f"{page}.evil", f"{scheme}://evil.{host}{port}", f"{scheme}://{host}:1"]
    strangers += [page.replace("://", "s://"), f"{scheme}://{host[:-1]}{port}"]
    app = make_app(api_keys=SECRET[1], allowed_origins=f"https://other.example,{page}")
    routes = {"POST": "/retrieve", "PUT": "/galleries/g", "PATCH": "/galleries/g/items/a", "DELETE": "/class-sets/a"}
    async with connected(app) as client:
        for method, path in routes.items():
            sent = random.permutation(["content-type", "x-api-key", "if-match", "idempotency-key", "x-min-seq"])
            preflight = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": ", ".join(sent)}
            allowed = await client.options(path, headers={**preflight, "Origin": page})
            assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, page)
            assert allowed.headers["access-control-allow-credentials"] == "true"
            for one in strangers:
                refused = await client.options(path, headers={**preflight, "Origin": one})
                assert (refused.status_code, "access-control-allow-origin" in refused.headers) == (400, False)
        for headers, status in (({}, 401), ({"X-API-Key": SECRET[0]}, 503)):
            for origin, is_allowed in ((page, True), *((one, False) for one in strangers)):
                answer = await client.get("/galleries", headers={**headers, "Origin": origin})
                assert answer.status_code == status
                assert (answer.headers.get("access-control-allow-origin") == page) is is_allowed
                assert "Origin" in answer.headers["vary"]


async def test_19_a_compressed_body_is_the_body(random: Random, app: FastAPI) -> None:
    strokes = [[random.integers(0, 256, 40).tolist(), random.integers(0, 256, 40).tolist()] for _ in range(3)]
    body = json.dumps({"sketch": {"strokes": strokes, "width": 256, "height": 256}, "k": 2}).encode()
    coding = str(random.choice(list(CODINGS)))
    data = CODINGS[coding](body)
    cuts = sorted(random.integers(0, len(data) + 1, int(random.integers(1, 9))).tolist())

    async def pieces() -> AsyncIterator[bytes]:
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            yield data[start:end]

    headers = {"Content-Type": "application/json"}
    coded = {**headers, "Content-Encoding": coding.upper() if random.integers(2) else coding}
    async with connected(app) as client:
        plain = await client.post("/retrieve", content=body, headers=headers)
        for content in (data, pieces()):
            answer = await client.post("/retrieve", content=content, headers=coded)
            assert (answer.status_code, answer.json()["results"]) == (200, plain.json()["results"])
        if coding == "identity":
            return
        cut = await client.post("/retrieve", content=data[: int(random.integers(0, len(data)))], headers=coded)
        assert (cut.status_code, cut.json()["code"]) == (400, "malformed")
        bomb = CODINGS[coding](bytes(int(random.integers(33, 50)) << 20))
        assert len(bomb) < 1 << 16
        assert (await client.post("/retrieve", content=bomb, headers=coded)).status_code == 413
