"""What is sent again, when, and never: tables of outcomes; and real refusals of a server that loads or is full."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.problems import catalogue
from tests.app.test_server import started
from vermouth_client import Client, NoAnswer, Strokes, errors
from vermouth_client.calls import Call, call
from vermouth_client.retries import Attempts, Outcome, retry_after_s

READ = call(bytes, "POST", "retrieve", body={"text": "a"})  # type: ignore[arg-type]  # never parsed
WRITE = call(bytes, "POST", "galleries", "g", "items", body=[], writes=True)  # type: ignore[arg-type]  # as above
SUPPORT = call(bytes, "POST", "fewshot", "episodes", "e", "support", version=1, writes=True)  # type: ignore[arg-type]
CHANGE = call(bytes, "PATCH", "fewshot", "episodes", "e", body={}, version=1)  # type: ignore[arg-type]
DELETE = call(lambda _: b"", "DELETE", "galleries", "g")


def answer(status: int, *, own: bool = True, code: str = "", **headers: str) -> httpx.Response:
    kind = "application/problem+json" if own else "text/html"
    body: dict[str, Any] = {"json": {"code": code, "detail": "Why."}} if own else {"text": "<html>"}
    headers = {name.replace("_", "-"): value for name, value in headers.items()} | {"Content-Type": kind}
    return httpx.Response(status, headers=headers, request=httpx.Request("GET", "http://x/y"), **body)


@pytest.mark.parametrize(
    ("outcome", "sent_again"),
    [
        pytest.param(answer(429, Retry_After="1"), "RWSC", id="full"),
        pytest.param(answer(503, Retry_After="5"), "RWSC", id="loading"),
        pytest.param(answer(503), "RWSC", id="failed"),
        pytest.param(answer(503, own=False), "RWS", id="a proxy's 503: the request may have come through"),
        pytest.param(answer(502, own=False), "RWS", id="a proxy's 502"),
        pytest.param(answer(504, own=False), "RWS", id="a proxy's 504"),
        pytest.param(answer(504), "", id="the deadline"),
        pytest.param(answer(409, Retry_After="1"), "WS", id="its first attempt still runs"),
        pytest.param(answer(409), "", id="conflict"),
        pytest.param(answer(412), "", id="another version"),
        pytest.param(answer(422), "", id="invalid"),
        pytest.param(answer(500), "", id="internal"),
        pytest.param(answer(200, own=False), "", id="success"),
        pytest.param(httpx.ConnectError("refused"), "RWSC", id="never connected"),
        pytest.param(httpx.ConnectTimeout("late"), "RWSC", id="never connected in time"),
        pytest.param(httpx.RemoteProtocolError("closed"), "RWS", id="the connection broke"),
        pytest.param(httpx.ReadError("reset"), "RWS", id="reset"),
        pytest.param(httpx.ReadTimeout("late"), "RWS", id="no answer in time"),
        pytest.param(httpx.WriteError("broken pipe"), "RWS", id="could not be sent whole"),
    ],
)
def test_only_what_does_nothing_twice_is_sent_again(outcome: Outcome, sent_again: str) -> None:
    calls: dict[str, Call[bytes]] = {"R": READ, "W": WRITE, "S": SUPPORT, "C": CHANGE}
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
    assert first.result(answer(404, code="not-found")) == b""


def test_a_lost_answer_says_whether_the_write_may_be_done() -> None:
    for outcome, may_be_done in [(httpx.ConnectError("refused"), False), (httpx.ReadError("reset"), True)]:
        attempts = Attempts(CHANGE, 0)
        assert attempts.wait_s(outcome) is None
        with pytest.raises(NoAnswer) as caught:
            attempts.result(outcome)
        assert caught.value.may_be_done is may_be_done
    with pytest.raises(errors.ServiceError, match="is not the service, or a proxy"):
        Attempts(READ, 0).result(answer(404, own=False))


def test_every_code_of_the_catalogue_has_its_class() -> None:
    assert {code: kind.__name__ for code, kind in catalogue().items()} == {
        code: kind.__name__ for code, kind in errors.KINDS.items()
    }
    for code, kind in errors.KINDS.items():
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
