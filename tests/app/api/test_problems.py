"""Errors have one form, whatever raised them, and never carry internal text."""

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection, Request

from app import errors
from app.api.auth import Scope, ScopedRoute, requires
from app.api.bodies import read_json
from app.api.deps import Platform, Services
from app.api.problems import catalogue, problem_body, problem_response, service_error
from app.domain import Limits
from app.errors import FieldError, QueueFull, ServiceError
from app.main import create_app
from app.settings import Settings

pytestmark = pytest.mark.anyio


CONNECTION = HTTPConnection({"type": "http", "path": "/", "headers": [], "state": {}, "server": ("x", 80)})


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    k: int = Field(ge=1)
    names: list[str] = []
    weight: float = Field(0.5, allow_inf_nan=False)


def make_app() -> FastAPI:
    def never_loads(settings: Settings, platform: Platform) -> Services:
        del settings, platform
        raise AssertionError

    app, router = create_app(Settings(), never_loads), APIRouter(route_class=ScopedRoute)

    @router.post("/orders")
    @requires(Scope.OPEN)
    async def order(request: Request) -> Order:
        return await read_json(request, Order, Limits())

    @router.get("/raise/{code}")
    @requires(Scope.OPEN)
    async def fail(code: str) -> None:
        if code == "unknown":
            raise RuntimeError("the password is swordfish")
        raise catalogue()[code]("A sentence.", retry_after_s=2.6)

    app.include_router(router)
    return app


@pytest.fixture
def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(make_app()), base_url="http://test")


@pytest.mark.parametrize(
    ("wait_s", "seconds"), [(0.0, "1"), (0.4, "1"), (1.1, "1"), (1.5, "2"), (2.4, "2"), (59.7, "60")]
)
async def test_a_wait_is_reported_to_the_nearest_second_and_never_as_none(wait_s: float, seconds: str) -> None:
    error = QueueFull("The queue is full.", retry_after_s=wait_s)
    assert problem_response(error, CONNECTION).headers["Retry-After"] == seconds


@pytest.mark.parametrize("code", sorted(catalogue()))
async def test_every_kind_becomes_a_problem_and_is_in_the_catalogue(client: httpx.AsyncClient, code: str) -> None:
    answer = await client.get(f"/raise/{code}", headers={"X-Request-ID": "abc-1"})
    kind = catalogue()[code]
    assert answer.status_code == kind.status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["retry-after"] == "3"
    assert answer.json() == {
        "type": f"/errors/{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": "A sentence.",
        "instance": f"/raise/{code}",
        "code": code,
        "request_id": "abc-1",
    }
    entry = await client.get(answer.json()["type"])
    assert entry.json() == {"code": code, "status": kind.status, "title": kind.title}


async def test_an_unknown_error_says_nothing_of_itself(client: httpx.AsyncClient) -> None:
    answer = await client.get("/raise/unknown")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "swordfish" not in answer.text
    assert "RuntimeError" not in answer.text
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        pytest.param(b'{"k": 3', "application/json", 400, "malformed", id="cut JSON"),
        pytest.param(b"\xff\xfe", "application/json", 400, "malformed", id="not UTF-8"),
        pytest.param(b"[" * 100_000, "application/json", 400, "malformed", id="deep nesting"),
        pytest.param(b'{"k": 0}', "application/json", 422, "invalid", id="out of bounds"),
        pytest.param(b'{"k": 1, "colour": 1}', "application/json", 422, "invalid", id="unknown field"),
        pytest.param(b'{"k": 1, "weight": NaN}', "application/json", 422, "invalid", id="NaN"),
        pytest.param(b'{"k": 1, "weight": 1e999}', "application/json", 422, "invalid", id="infinity"),
        pytest.param(b"", "application/json", 400, "malformed", id="nothing"),
        pytest.param(b'{"k": 1}', "text/plain", 415, "unsupported-media", id="text"),
        pytest.param(b'{"k": 1}', None, 415, "unsupported-media", id="no content type"),
        pytest.param(b"k=1", "application/x-www-form-urlencoded", 415, "unsupported-media", id="form"),
    ],
)
async def test_bad_bodies(
    client: httpx.AsyncClient, content: bytes, content_type: str | None, status: int, code: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await client.post("/orders", content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_field_errors_name_their_place(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", json={"k": 0, "names": ["a", 2], "colour": 1})
    fields = {error["field"] for error in answer.json()["errors"]}
    assert fields == {"k", "names[1]", "colour"}


async def test_the_only_field_at_fault_is_explained_in_the_sentence(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", json={"k": 0})
    wanted = "Out of bounds or not in the schema: k. Input should be greater than or equal to 1."
    assert answer.json()["detail"] == wanted


async def test_lone_surrogates_in_a_field_name_are_answered(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/orders", content=b'{"k": 1, "\\ud800": 2}', headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not-found"), ("DELETE", "/version", 405, "method-not-allowed")],
)
async def test_the_routers_own_errors(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    if status == 405:
        assert "GET" in answer.headers["allow"]


def test_codes_are_unique() -> None:
    kinds: list[type[ServiceError]] = [ServiceError, *ServiceError.__subclasses__()]
    assert len({kind.code for kind in kinds}) == len(kinds)


def test_field_errors_travel_with_the_problem() -> None:
    error = errors.Invalid("No.", errors=[FieldError(field="items[3].id", message="bad")])
    body = problem_body(service_error(error), CONNECTION)
    assert body["errors"] == [{"field": "items[3].id", "message": "bad"}]
