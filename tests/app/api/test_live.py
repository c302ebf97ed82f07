"""`WS /retrieve/live` over a real connection."""

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from app.api.auth import Scope, new_key
from app.api.routers import live
from app.domain import Limits
from app.engine.admission import PassTimes
from app.engine.entries import EntryQueue
from tests.app.api.served import LIMIT_S, Watched, new_app, served, set_soon
from tests.app.fakes import FakeEncoder

pytestmark = pytest.mark.anyio
LINE = {"strokes": [[[10, 240], [20, 230]]], "width": 256, "height": 256}


def opened(port: int, parameters: str = "", **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{port}/retrieve/live{parameters}", open_timeout=LIMIT_S, **options)


def query(seq: int, **fields: object) -> str:
    return json.dumps({"type": "query", "seq": seq, **LINE, **fields})


async def received(socket: ClientConnection) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), LIMIT_S))
    return found


async def close_code(socket: ClientConnection) -> int | None:
    await asyncio.wait_for(socket.wait_closed(), LIMIT_S)
    return socket.close_code


def held(encoder: FakeEncoder) -> asyncio.Event:
    """Stops the device at its next pass, and tells when that has begun; passes are counted from here."""
    entered = asyncio.Event()
    encoder.entered = partial(set_soon, asyncio.get_running_loop(), entered)
    encoder.gate.clear()
    encoder.batches.clear()
    return entered


async def test_each_query_is_answered_under_its_number(tmp_path: Path) -> None:
    async with served(new_app(FakeEncoder(), tmp_path)) as port, opened(port) as socket:
        for seq in (0, 7):
            await socket.send(query(seq, text="a line", k=3, filter={"kind": "icon"}))
            answer = await received(socket)
            assert (answer["type"], answer["seq"], answer["gallery"]) == ("results", seq, "default")
            assert answer["results"] == []
            assert answer["timings_ms"]["total"] > 0


async def test_k_is_what_the_setting_allows(tmp_path: Path) -> None:
    async with served(new_app(FakeEncoder(), tmp_path, limits=Limits(max_k=1001))) as port, opened(port) as socket:
        for seq, kind in ((1001, "results"), (1002, "error")):
            await socket.send(query(seq, k=seq))
            answer = await received(socket)
            assert answer["type"] == kind
        assert [error["field"] for error in answer["problem"]["errors"]] == ["k"]


@pytest.mark.parametrize(
    ("message", "seq", "code"),
    [
        pytest.param("{", None, "malformed", id="no-json"),
        pytest.param(b"{}", None, "malformed", id="binary"),
        pytest.param('{"type": "query", "seq": 1}', 1, "invalid", id="no-strokes"),
        pytest.param(query(1, colour="red"), 1, "invalid", id="unknown-field"),
        pytest.param(query(1).replace("10", "NaN"), None, "invalid", id="nan"),
        pytest.param(query(1, gallery="none"), 1, "not-found", id="no-gallery"),
        pytest.param(query(1, filter={"kind": {"like": 1}}), 1, "invalid", id="bad-filter"),
        pytest.param(query(1, width=5000), 1, "image-too-large", id="canvas"),
        pytest.param(query(0), 0, "invalid", id="number-used"),
    ],
)
async def test_a_bad_message_is_reported_and_the_connection_goes_on(
    tmp_path: Path, message: str | bytes, seq: int | None, code: str
) -> None:
    async with served(new_app(FakeEncoder(), tmp_path)) as port, opened(port) as socket:
        await socket.send(query(0))
        assert (await received(socket))["type"] == "results"
        await socket.send(message)
        error = await received(socket)
        assert (error["type"], error["seq"], error["problem"]["code"]) == ("error", seq, code)
        await socket.send(query(9))
        assert (await received(socket))["seq"] == 9


async def test_a_newer_query_takes_the_place_of_one_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FakeEncoder()
    monkeypatch.setattr(PassTimes, "expected_s", lambda _self, _batch: None)
    put, dropped = Watched(EntryQueue, "put", monkeypatch), Watched(EntryQueue, "drop", monkeypatch)
    async with served(new_app(encoder, tmp_path)) as port, opened(port) as first, opened(port) as socket:
        entered = held(encoder)
        await first.send(query(1))
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        for wait in (put, dropped):
            await wait.wait()
        await socket.send(query(1, strokes=[[[10, 20, 200], [20, 20, 20]]]))
        await put.wait()
        await socket.send(query(2, strokes=[[[10, 20, 240], [20, 200, 30]]]))
        await dropped.wait()
        await put.wait()
        encoder.gate.set()
        assert (await received(first))["seq"] == 1
        assert (await received(socket))["seq"] == 2
    assert encoder.batches == [1, 1]


async def test_a_query_whose_pass_runs_is_answered_though_newer_ones_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FakeEncoder()
    # However slow the machine is.
    monkeypatch.setattr(live, "SUPERSEDED_TIMEOUT_S", LIMIT_S)
    put = Watched(EntryQueue, "put", monkeypatch)
    async with served(new_app(encoder, tmp_path)) as port, opened(port) as socket:
        entered = held(encoder)
        await socket.send(query(1))
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        await put.wait()
        await socket.send(query(2, strokes=[[[10, 20, 200], [20, 20, 20]]]))
        await put.wait()  # beside the first
        for seq in (3, 4):
            await socket.send(query(seq, strokes=[[[10, 20, 200 + seq], [20, 20, 20]]]))
        await socket.send("{")
        assert (await received(socket))["problem"]["code"] == "malformed"
        encoder.gate.set()
        assert [(await received(socket))["seq"] for _ in range(3)] == [1, 2, 4]


async def test_results_of_an_older_drawing_are_not_sent_after_those_of_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FakeEncoder()
    monkeypatch.setattr(live, "SUPERSEDED_TIMEOUT_S", LIMIT_S)
    async with served(new_app(encoder, tmp_path, feature_cache_bytes=1 << 20)) as port, opened(port) as socket:
        await socket.send(query(0))
        assert (await received(socket))["seq"] == 0
        entered = held(encoder)
        await socket.send(query(1, strokes=[[[10, 20, 200], [20, 20, 20]]]))
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        await socket.send(query(2))  # a known drawing
        assert (await received(socket))["seq"] == 2
        await socket.send(query(3, strokes=[[[10, 20, 200], [20, 200, 20]]]))  # encoded after the first
        encoder.gate.set()
        assert (await received(socket))["seq"] == 3


async def test_a_client_that_leaves_takes_its_query_out_of_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FakeEncoder()
    monkeypatch.setattr(PassTimes, "expected_s", lambda _self, _batch: None)
    put, dropped = Watched(EntryQueue, "put", monkeypatch), Watched(EntryQueue, "drop", monkeypatch)
    async with served(new_app(encoder, tmp_path)) as port, opened(port) as stays:
        entered = held(encoder)
        await stays.send(query(1))
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        for wait in (put, dropped):
            await wait.wait()
        async with opened(port) as gone:
            await gone.send(query(1, strokes=[[[10, 20, 240], [20, 200, 30]]]))
            await put.wait()
            gone.transport.abort()
            await dropped.wait()
        encoder.gate.set()
        assert (await received(stays))["type"] == "results"
    assert encoder.batches == [1]


async def test_a_key_is_needed_where_keys_are_on(tmp_path: Path) -> None:
    key, line = new_key("reader", [Scope.READ])
    metrics, metrics_line = new_key("metrics", [Scope.METRICS])
    app = new_app(FakeEncoder(), tmp_path, api_keys=f"{line},{metrics_line}")
    async with served(app) as port:
        for first in (query(1), json.dumps({"type": "auth", "key": "nonsense"})):
            async with opened(port) as socket:
                await socket.send(first)
                assert await close_code(socket) == 4401
        async with opened(port) as socket:
            await socket.send(json.dumps({"type": "auth", "key": metrics}))
            assert await close_code(socket) == 4403
        async with opened(port) as socket:
            await socket.send(json.dumps({"type": "auth", "key": key}))
            await socket.send(query(1))
            assert (await received(socket))["type"] == "results"
        async with opened(port, additional_headers={"X-API-Key": key}) as socket:
            await socket.send(query(1))
            assert (await received(socket))["type"] == "results"


@pytest.mark.parametrize(
    ("parameters", "code"),
    [("?gallery=default", 4422), ("?=1", 4422), ("?" + "%C3%A9" * 200, 4422), ("?a=%ff", 4400)],
    ids=["unknown", "no-name", "long", "not-utf-8"],
)
async def test_an_unknown_query_parameter_is_refused(tmp_path: Path, parameters: str, code: int) -> None:
    async with served(new_app(FakeEncoder(), tmp_path)) as port, opened(port, parameters) as socket:
        assert await close_code(socket) == code


@pytest.mark.parametrize("padding", [0, 100_000], ids=["small", "large"])
async def test_a_message_holds_as_many_values_as_the_setting_allows(tmp_path: Path, padding: int) -> None:
    app = new_app(FakeEncoder(), tmp_path, limits=Limits(max_json_values=1000))
    async with served(app) as port, opened(port) as socket:
        for seq, points, kind in ((1, 400, "results"), (2, 600, "error")):
            await socket.send(query(seq, strokes=[[[9] * points, [9] * points]]) + " " * padding)
            answer = await received(socket)
            assert answer["type"] == kind
        assert answer["problem"]["code"] == "too-much-work"


async def test_a_page_of_another_site_is_refused(tmp_path: Path) -> None:
    async with served(new_app(FakeEncoder(), tmp_path)) as port:
        async with opened(port, origin="https://elsewhere.example") as socket:
            assert await close_code(socket) == 4403
        async with opened(port, origin=f"http://127.0.0.1:{port}") as socket:
            await socket.send(query(1))
            assert (await received(socket))["type"] == "results"


async def test_connections_and_messages_are_bounded(tmp_path: Path) -> None:
    async with served(new_app(FakeEncoder(), tmp_path, max_live_connections=1)) as port:
        async with opened(port) as socket:
            await socket.send(query(1))
            await received(socket)
            async with opened(port) as another:
                assert await close_code(another) == 4429
            await socket.send(" " * (1 << 20) + query(2))
            assert await close_code(socket) == 1009
        async with opened(port) as again:
            await again.send(query(1))
            assert (await received(again))["type"] == "results"


async def test_a_key_that_nobody_asks_for_is_ignored(tmp_path: Path) -> None:
    async with served(new_app(FakeEncoder(), tmp_path)) as port, opened(port) as socket:
        await socket.send(json.dumps({"type": "auth", "key": "vm_any"}))
        await socket.send(query(1))
        assert (await received(socket))["type"] == "results"
