"""What is sent again, when, and never: tables of outcomes; and real refusals of a server that loads or is full."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.message import Message
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.problems import catalogue
from tests.app.test_server import started
from tests.client.scripted import Answer, Request, scripted
from vermouth_client import AsyncClient, Client, NoAnswer, Strokes, errors
from vermouth_client.calls import Call, call
from vermouth_client.retries import Attempts, Outcome, retry_after_s
from vermouth_client.routes import Routes

READ = call(bytes, "POST", "retrieve", body={"text": "a"})  # type: ignore[arg-type]  # never parsed
WRITE = call(bytes, "POST", "galleries", "g", "items", body=b"[]", writes=True)  # type: ignore[arg-type]  # as above
SUPPORT = call(bytes, "POST", "fewshot", "episodes", "e", "support", version=1, writes=True)  # type: ignore[arg-type]
CHANGE = call(bytes, "PATCH", "fewshot", "episodes", "e", body={}, version=1)  # type: ignore[arg-type]
DELETE = call(lambda _: b"", "DELETE", "galleries", "g")
CANCEL = Routes.delete_job.plan(None, "job_1")
GET = call(bytes, "GET", "galleries")  # type: ignore[arg-type]  # as above


def answer(status: int, *, own: bool = True, code: str = "", **headers: str) -> httpx.Response:
    kind = "application/problem+json" if own else "text/html"
    body: dict[str, Any] = {"json": {"code": code, "detail": "Why."}} if own else {"text": "<html>"}
    headers = {name.replace("_", "-"): value for name, value in headers.items()} | {"Content-Type": kind}
    return httpx.Response(status, headers=headers, request=httpx.Request("GET", "http://x/y"), **body)


@pytest.mark.parametrize(
    ("outcome", "sent_again"),
    [
        pytest.param(answer(429, Retry_After="1"), "RWSCD", id="full"),
        pytest.param(answer(503, Retry_After="5"), "RWSCD", id="loading"),
        pytest.param(answer(503), "RWSCD", id="failed"),
        pytest.param(answer(503, own=False), "RWS", id="a proxy's 503: the request may have come through"),
        pytest.param(answer(502, own=False), "RWS", id="a proxy's 502"),
        pytest.param(answer(504, own=False), "RWS", id="a proxy's 504"),
        pytest.param(answer(504), "", id="the deadline"),
        pytest.param(answer(504, Retry_After="2"), "RWSCD", id="a queue longer than the deadline"),
        pytest.param(answer(409, Retry_After="1"), "WS", id="its first attempt still runs"),
        pytest.param(answer(409), "", id="conflict"),
        pytest.param(answer(412), "", id="another version"),
        pytest.param(answer(422), "", id="invalid"),
        pytest.param(answer(500), "", id="internal"),
        pytest.param(answer(200, own=False), "", id="success"),
        pytest.param(httpx.ConnectError("refused"), "RWSCD", id="never connected"),
        pytest.param(httpx.ConnectTimeout("late"), "RWSCD", id="never connected in time"),
        pytest.param(httpx.ProxyError("407"), "RWSCD", id="the proxy did not connect"),
        pytest.param(httpx.DecodingError("gzip"), "RWS", id="an answer that does not decode"),
        pytest.param(httpx.UnsupportedProtocol("ftp"), "", id="a wrong scheme"),
        pytest.param(httpx.LocalProtocolError("header"), "", id="a header that cannot be sent"),
        pytest.param(httpx.RemoteProtocolError("closed"), "RWS", id="the connection broke"),
        pytest.param(httpx.ReadError("reset"), "RWS", id="reset"),
        pytest.param(httpx.ReadTimeout("late"), "RWS", id="no answer in time"),
        pytest.param(httpx.WriteError("broken pipe"), "RWS", id="could not be sent whole"),
    ],
)
def test_only_what_does_nothing_twice_is_sent_again(outcome: Outcome, sent_again: str) -> None:
    calls: dict[str, Call[Any]] = {"R": READ, "W": WRITE, "S": SUPPORT, "C": CHANGE, "D": CANCEL}
    assert "".join(name for name, one in calls.items() if Attempts(one, 60).wait_s(outcome) is not None) == sent_again


def test_the_service_is_not_asked_earlier_than_it_says_nor_after_the_budget() -> None:
    for _ in range(100):
        wait_s = Attempts(READ, 60).wait_s(answer(429, Retry_After="7"))
        assert wait_s is not None
        assert 7 <= wait_s <= 8
    assert Attempts(READ, 5).wait_s(answer(429, Retry_After="7")) is None
    growing = Attempts(READ, 60)
    waits = [growing.wait_s(httpx.ConnectError("")) or 0.0 for _ in range(5)]
    assert waits == sorted(waits)
    assert 1.6 / 2 <= waits[-1] <= 1.6


@pytest.mark.parametrize(
    ("text", "least_s", "most_s"),
    [("3", 3, 3), ("Fri, 31 Dec 2100 23:59:59 GMT", 1e9, 1e10), ("Sat, 01 Jan 2000 00:00:00 GMT", 0, 0)],
)
def test_retry_after_is_seconds_or_a_date(text: str, least_s: float, most_s: float) -> None:
    assert least_s <= (retry_after_s(answer(429, Retry_After=text)) or 0.0) <= most_s
    assert retry_after_s(answer(429)) is None


def test_a_delete_that_finds_its_own_work_done_succeeds() -> None:
    first = Attempts(DELETE, 60)
    with pytest.raises(errors.NotFound):
        first.result(answer(404, code="not-found"))
    assert first.wait_s(httpx.ReadError("reset")) is not None
    with pytest.raises(errors.ServiceError, match="is not the service, or a proxy"):
        first.result(answer(404, own=False))
    assert first.result(answer(404, code="not-found")) == b""


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_that_lost_the_answer_is_no_answer(status: int) -> None:
    calls: list[tuple[Call[Any], bool]] = [(CHANGE, True), (DELETE, True), (CANCEL, True), (READ, False), (GET, False)]
    for one, may_be_done in calls:
        attempts = Attempts[Any](one, 0)
        assert attempts.wait_s(answer(status, own=False)) is None
        with pytest.raises(NoAnswer, match=f"answered {status} and is not the service, or a proxy") as caught:
            attempts.result(answer(status, own=False))
        assert caught.value.may_be_done is may_be_done


@pytest.mark.parametrize(("status", "kind"), [(413, errors.BodyTooLarge), (429, errors.QueueFull)])
def test_a_proxys_own_limits_are_those_of_the_service(status: int, kind: type[errors.ServiceError]) -> None:
    with pytest.raises(kind, match="a proxy before it answered") as caught:
        Attempts(READ, 0).result(answer(status, own=False, Retry_After="3"))
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (status, kind.code, 3)


@pytest.mark.parametrize(("one", "may_be_done"), [(READ, False), (GET, False), (WRITE, True), (CHANGE, True)])
def test_an_answer_of_another_kind_says_whether_a_write_may_be_done(one: Call[Any], may_be_done: bool) -> None:
    with pytest.raises(NoAnswer, match="did not answer as the service does") as caught:
        Attempts(replace(one, parse=httpx.Response.json), 0).result(answer(200, own=False))
    assert caught.value.may_be_done is may_be_done


def test_the_address_and_the_key_come_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str | None] = []

    def listed(request: Request) -> None:
        keys.append(request.headers["X-API-Key"])
        request.send(200, {"galleries": [], "total": 0})

    with scripted(listed) as url:
        monkeypatch.setenv("VERMOUTH_URL", url)
        monkeypatch.setenv("VERMOUTH_API_KEY", "vm_a")
        for key in (None, "vm_b", ""):
            with Client(key=key) as client:
                client.galleries()
    assert keys == ["vm_a", "vm_b", None]
    with Client(retry_s=0) as client, pytest.raises(NoAnswer, match=f"The service at {url}/ did not answer: "):
        client.galleries()


def test_what_never_changes_and_what_does_not_decode_are_typed_errors() -> None:
    started_s = time.monotonic()
    with Client("ftp://127.0.0.1") as client, pytest.raises(NoAnswer, match="protocol"):
        client.galleries()
    assert time.monotonic() - started_s < 20
    damaged: Answer = lambda request: request.send(200, b"no gzip", Content_Encoding="gzip")  # noqa: E731
    with scripted(damaged) as url, Client(url, retry_s=0) as client, pytest.raises(NoAnswer):
        client.galleries()


def test_an_export_is_complete_or_not_there_and_two_do_not_mix(tmp_path: Path) -> None:
    both_here = threading.Barrier(2)

    def send(request: Request) -> None:
        if "webdataset" in request.path:
            request.send(200, b"cut", Content_Length="100")
            request.close_connection = True
            return
        both_here.wait(60)
        request.send(200, bytes([65 + both_here.wait(60)]) * 3_000_000, X_Seq="7")

    file = tmp_path / "all"
    with scripted(send) as url, Client(url, retry_s=0) as client, ThreadPoolExecutor(2) as pool:
        exports = [pool.submit(client.export, "g", file) for _ in range(2)]
        assert [one.result() for one in exports] == [7, 7]
        whole = file.read_bytes()
        assert whole in (b"A" * 3_000_000, b"B" * 3_000_000)
        with pytest.raises(NoAnswer):
            client.export("g", file, format="webdataset")
    assert file.read_bytes() == whole
    assert [*tmp_path.iterdir()] == [file]


def test_the_client_for_asyncio_exports_the_same(tmp_path: Path) -> None:
    def send(request: Request) -> None:
        whole = "webdataset" not in request.path
        request.send(200, b"12345", X_Seq="7", **({} if whole else {"Content_Length": "6"}))
        request.close_connection = True

    file = tmp_path / "all"

    async def export() -> None:
        async with AsyncClient(url, retry_s=0) as client:
            assert await client.export("g", file) == 7
            with pytest.raises(NoAnswer):
                await client.export("g", file, format="webdataset")

    with scripted(send) as url:
        asyncio.run(export())
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("all", b"12345")]


def test_a_proxys_headers_are_sent_with_the_clients() -> None:
    seen: list[Message] = []

    def note(request: Request) -> None:
        seen.append(request.headers)
        request.send(200, {"galleries": [], "total": 0})

    with scripted(note) as url, Client(url, key="k", headers={"Authorization": "Basic x"}) as client:
        client.galleries()
    names = ("Authorization", "X-API-Key", "User-Agent")
    assert [seen[0][name] for name in names] == ["Basic x", "k", "vermouth-client"]


def test_a_lost_answer_says_whether_the_write_may_be_done() -> None:
    sent = httpx.Request("PUT", "http://127.0.0.1:8000/a")
    failures = (httpx.ConnectError("refused", request=sent), False), (httpx.ReadError("reset", request=sent), True)
    for outcome, may_be_done in failures:
        attempts = Attempts(CHANGE, 0)
        assert attempts.wait_s(outcome) is None
        with pytest.raises(NoAnswer) as caught:
            attempts.result(outcome)
        assert caught.value.may_be_done is may_be_done
    with pytest.raises(errors.ServiceError, match="is not the service, or a proxy"):
        Attempts(READ, 0).result(answer(404, own=False))


def test_every_code_of_the_catalogue_has_its_class() -> None:
    kinds: dict[str, type[errors.ServiceError]] = {"internal": errors.ServiceError, **errors.ServiceError.of_code}
    assert {code: kind.__name__ for code, kind in catalogue().items()} == {
        code: kind.__name__ for code, kind in kinds.items()
    }
    for code, kind in kinds.items():
        error = errors.error_of({"code": code, "status": 418, "errors": [{"field": "k", "message": "is 0"}]})
        assert type(error) is kind
        assert "k: is 0" in str(error)


@pytest.mark.server
def test_a_client_waits_as_long_as_a_loading_server_says(tmp_path: Path) -> None:
    sent_at_s: list[float] = []
    note: Callable[[httpx.Request], None] = lambda _: sent_at_s.append(time.monotonic())  # noqa: E731 - a hook
    with started("held", tmp_path, limit_s=300) as process, process.connect() as http:
        refused = threading.Event()
        hooks = {"request": [note], "response": [lambda _: refused.set()]}
        with Client(str(http.base_url), retry_s=200, event_hooks=hooks) as client, ThreadPoolExecutor() as pool:
            found = pool.submit(client.galleries)
            refused.wait()
            process.release()
            assert found.result().galleries[0].name == "default"
    assert all(later - sooner >= 5 for sooner, later in pairwise(sent_at_s))  # its Retry-After


@pytest.mark.server
def test_sixteen_threads_get_every_answer_of_a_server_that_takes_two_requests(tmp_path: Path) -> None:
    statuses: list[int] = []
    hooks = {"response": [lambda response: statuses.append(response.status_code)]}
    drawing = Strokes([[[0, 90], [0, 90]]], 100, 100)
    with started("free", tmp_path, limit_s=300, MAX_IN_FLIGHT="2") as process, process.connect() as http:
        process.wait_for("ready")
        with Client(str(http.base_url), retry_s=200, event_hooks=hooks) as client, ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(client.embed, [drawing] * 8, [f"text {n}"]) for n in range(32)]
            assert len({tuple(one.result().texts[0]) for one in answers}) > 1
    assert statuses.count(200) == 32
    assert statuses.count(429) > 0
    assert set(statuses) == {200, 429}
