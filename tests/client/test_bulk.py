"""Imports: what is counted as what, and how much of the source is in memory."""

import asyncio
import io
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.app.api.images import png
from tests.client.scripted import Request, scripted
from vermouth_client import (
    AsyncClient,
    Client,
    ImportReport,
    ImportStopped,
    NewItem,
    ServiceError,
    Strokes,
    Svg,
    folder_items,
)
from vermouth_client.bulk import MAX_BATCH_BYTES, Batch, Bulk
from vermouth_client.errors import DeadlineExceeded, DiskFull, Invalid, ResponseLost, TooMuchWork
from vermouth_client.models import ItemOutcome, ItemsWritten

DRAWING = Strokes([[[0, 90], [0, 90]]], 100, 100)
SMALL = 8


def source(folder: Path) -> Iterator[NewItem]:
    yield from (NewItem(DRAWING, f"i{n}", {"n": n}) for n in range(20))
    yield NewItem(folder / "missing.png", "missing")
    yield NewItem(b"no image", "text")  # rejected alone by the service
    yield NewItem(DRAWING, "an id with spaces")  # for which it refuses the whole batch
    yield NewItem(DRAWING, "known")
    yield NewItem(png(), caption="an id is made up")


def check(report: ImportReport) -> None:
    assert (report.created, report.replaced, report.skipped) == (20, 1, 1)
    assert {(one.id, one.code) for one in report.rejected} == {
        ("missing", "unreadable"),
        ("text", "undecodable-image"),
        ("an id with spaces", "invalid"),
    }
    assert all(one.detail for one in report.rejected)
    assert "letters, digits" in next(one.detail for one in report.rejected if one.code == "invalid")


NAMES = ["a.png", "b/c d (1).PNG", "été.webp", "猫.jpg", "-dash.jpg", f"{'x' * 120}.gif", "100% #1.tiff"]


def test_a_folder_is_the_images_in_it_with_ids_that_the_service_takes(tmp_path: Path) -> None:
    for name in (*NAMES, ".hidden.png", ".git/a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    found = list(folder_items(tmp_path))
    assert sorted(one.metadata["path"] for one in found) == sorted(NAMES)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", one.id or "") for one in found)


@pytest.mark.server
def test_every_item_is_added_skipped_or_rejected_with_a_reason(service: dict[str, Any], tmp_path: Path) -> None:
    with Client(**service) as client:
        client.put_gallery("bulk")
        client.add_items("bulk", [NewItem(DRAWING, "i0")])
        check(client.import_items("bulk", source(tmp_path), skip={"known"}, batch=SMALL, concurrency=3))
        assert client.gallery("bulk").count == 21
        assert client.item("bulk", "i0").metadata == {"n": 0}
        client.delete_gallery("bulk", with_items=True)


@pytest.mark.server
@pytest.mark.anyio
async def test_the_client_for_asyncio_imports_the_same(service: dict[str, Any], tmp_path: Path) -> None:
    async with AsyncClient(**service) as client:
        await client.put_gallery("bulk")
        await client.add_items("bulk", [NewItem(DRAWING, "i0")])
        check(await client.import_items("bulk", source(tmp_path), skip={"known"}, batch=SMALL, concurrency=3))
        await client.delete_gallery("bulk", with_items=True)
        with pytest.raises(ImportStopped) as caught:
            await client.import_items("bulk", source(tmp_path), batch=SMALL)
        assert caught.value.report.added == 0


def ids(batch: Batch) -> list[str]:
    return [part.fields["id"] for part in batch]


def written(batch: Batch) -> ItemsWritten:
    return ItemsWritten(seq=1, results=[ItemOutcome(id=name, status="created") for name in ids(batch)])


def test_the_source_is_read_a_batch_at_a_time() -> None:
    n_read = 0

    def endless() -> Iterator[NewItem]:
        nonlocal n_read
        while True:
            n_read += 1
            yield NewItem(DRAWING)

    bulk = Bulk(endless(), skip=(), size=5)
    for number in range(1, 10):
        batch = bulk.next()
        assert (len(batch), n_read) == (5, 5 * number)
        bulk.settle(batch, written(batch))
    assert bulk.report.created == 45


@pytest.mark.parametrize(
    "half",
    [
        pytest.param(NewItem(bytes(MAX_BATCH_BYTES // 2)), id="image"),
        pytest.param(NewItem(Svg("<svg>" + " " * (MAX_BATCH_BYTES // 2))), id="drawing"),
        pytest.param(NewItem(DRAWING, metadata={"text": "x" * (MAX_BATCH_BYTES // 2)}), id="metadata"),
    ],
)
def test_large_items_make_small_batches_and_none_is_lost_between_them(half: NewItem) -> None:
    bulk = Bulk((replace(half, id=f"i{n}") for n in range(3)), skip=(), size=5)
    assert [ids(bulk.next()) for _ in range(4)] == [["i0"], ["i1"], ["i2"], []]


@pytest.mark.parametrize("value", [float("nan"), datetime.now(UTC), np.complex64(1), {1}, b"x"])
def test_an_item_that_json_does_not_have_is_rejected_alone(value: object) -> None:
    items = [NewItem(DRAWING, "a"), NewItem(DRAWING, "b", {"value": value}), NewItem(DRAWING, "c")]
    bulk = Bulk(items, skip=(), size=5)
    assert ids(bulk.next()) == ["a", "c"]
    assert [(one.id, one.code) for one in bulk.report.rejected] == [("b", "unreadable")]


def test_a_batch_whose_answer_was_lost_is_sent_again() -> None:
    bulk = Bulk((NewItem(DRAWING, f"i{n}") for n in range(3)), skip=(), size=3)
    first = bulk.next()
    bulk.settle(first, ResponseLost({}))
    again = bulk.next()
    assert again == first
    bulk.settle(again, written(again))
    assert (bulk.next(), bulk.result().created) == ([], 3)


@pytest.mark.parametrize("refusal", [Invalid, TooMuchWork])
def test_a_refused_batch_is_halved_down_to_the_item(refusal: type[ServiceError]) -> None:
    bulk = Bulk((NewItem(DRAWING, f"i{n}") for n in range(8)), skip=(), size=8)
    while batch := bulk.next():
        bulk.settle(batch, refusal({}) if "i5" in ids(batch) else written(batch))
    assert bulk.result().created == 7
    assert [(one.id, one.code) for one in bulk.report.rejected] == [("i5", refusal.code)]


def test_a_deadline_that_passes_for_one_item_stops_and_rejects_nothing() -> None:
    bulk = Bulk((NewItem(DRAWING, f"i{n}") for n in range(4)), skip=(), size=4)
    while batch := bulk.next():
        bulk.settle(batch, DeadlineExceeded({}) if "i3" in ids(batch) else written(batch))
    with pytest.raises(ImportStopped) as caught:
        bulk.result()
    assert caught.value.report.rejected == []
    assert isinstance(caught.value.__cause__, DeadlineExceeded)


def test_a_full_disk_stops_and_what_was_under_way_is_in_the_report() -> None:
    bulk = Bulk((NewItem(DRAWING, f"i{n}") for n in range(12)), skip=(), size=3)
    under_way = [bulk.next() for _ in range(3)]
    bulk.settle(under_way[0], DiskFull({}))
    assert bulk.next() == []
    for batch in under_way[1:]:
        bulk.settle(batch, written(batch))
    with pytest.raises(ImportStopped, match="after 6 items") as caught:
        bulk.result()
    assert caught.value.report.created == 6
    assert isinstance(caught.value.__cause__, DiskFull)


def test_what_came_before_a_source_that_fails_is_sent() -> None:
    def failing() -> Iterator[NewItem]:
        yield from (NewItem(DRAWING, "a"), NewItem(DRAWING, "b"))
        raise OSError("the disk is gone")

    bulk = Bulk(failing(), skip=(), size=5)
    batch = bulk.next()
    assert ids(batch) == ["a", "b"]
    assert bulk.next() == []
    bulk.settle(batch, Invalid({}))
    assert [ids(bulk.next()), ids(bulk.next())] == [["b"], ["a"]]
    bulk.settle(batch[:1], Invalid({}))
    bulk.settle(batch[1:], written(batch[1:]))
    with pytest.raises(ImportStopped, match="after 1 items") as caught:
        bulk.result()
    assert isinstance(caught.value.__cause__, OSError)


def test_files_are_sent_as_they_are_and_beside_a_drawing_as_base64() -> None:
    bodies: list[tuple[str, bytes]] = []

    def keep(request: Request) -> None:
        bodies.append((request.headers["Content-Type"], request.body))
        request.written()

    file = bytes(range(256))
    with scripted(keep) as url, Client(url) as client:
        client.add_items("default", [NewItem(file, "a", {"n": 1}), NewItem(b"", "b")])
        client.add_items("default", [NewItem(file, "a", {"n": 1}), NewItem(DRAWING, "b")])
    assert bodies[0][0].startswith("multipart/form-data; boundary=")
    assert file in bodies[0][1]
    assert bodies[0][1].count(b"filename=") == 2  # an empty file too is one, which the service rejects
    assert bodies[1][0] == "application/json"
    assert [[*one["image"]] for one in json.loads(bodies[1][1])] == [["base64"], ["strokes", "width", "height"]]


@pytest.mark.server
def test_a_file_may_have_nearly_the_size_of_a_body(service: dict[str, Any]) -> None:
    large = io.BytesIO()
    Image.new("RGB", (3000, 3300), "tan").save(large, "BMP")
    assert 28 << 20 < large.tell() < 32 << 20
    with Client(**service) as client:
        client.put_gallery("large")
        report = client.import_items("large", [NewItem(large.getvalue(), "a"), NewItem(png(), "b")])
        assert (report.created, report.rejected) == (2, [])
        client.delete_gallery("large", with_items=True)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
@pytest.mark.anyio
async def test_progress_is_reported_after_each_batch(kind: str) -> None:
    reported: list[int] = []
    items = [NewItem(DRAWING, f"i{n}") for n in range(7)]

    def note(report: ImportReport) -> None:
        reported.append(report.added)

    with scripted(lambda request: request.written()) as url:
        if kind == "blocking":
            with Client(url) as client:
                client.import_items("default", items, batch=3, concurrency=1, on_progress=note)
        else:
            async with AsyncClient(url) as other:
                await other.import_items("default", items, batch=3, concurrency=1, on_progress=note)
    assert reported == [3, 6, 7, 7]


class Source:
    """Endless items, and a service that holds the first four batches until it refuses one of them for good."""

    def __init__(self) -> None:
        self.n_read = self.n_held = 0
        self._all_here = threading.Barrier(4)
        self._is_refused = threading.Event()

    def __iter__(self) -> Iterator[NewItem]:
        while True:
            self.n_read += 1
            yield NewItem(DRAWING)

    def __call__(self, request: Request) -> None:
        if not self._is_refused.is_set() and self._all_here.wait(60) == 0:
            self.n_held = self.n_read
            request.refuse(507, "disk-full")
            self._is_refused.set()
            return
        self._is_refused.wait(60)
        request.written()

    def check(self, report: ImportReport) -> None:
        assert self.n_held == 4 * 32
        assert report.created == self.n_read - 32 >= 3 * 32


def test_an_import_holds_128_items_and_reports_what_ran_beside_its_failure() -> None:
    source = Source()
    with scripted(source) as url, Client(url) as client, pytest.raises(ImportStopped) as caught:
        client.import_items("default", source)
    source.check(caught.value.report)


@pytest.mark.anyio
async def test_the_client_for_asyncio_does_too() -> None:
    source = Source()
    with scripted(source) as url:
        async with AsyncClient(url) as client:
            with pytest.raises(ImportStopped) as caught:
                await client.import_items("default", source)
    source.check(caught.value.report)


def test_what_is_under_way_at_ctrl_c_is_in_the_last_report() -> None:
    is_over = threading.Event()
    reported: list[int] = []

    def answer(request: Request) -> None:
        is_over.wait(10)
        request.written()

    def source() -> Iterator[NewItem]:
        yield from (NewItem(DRAWING, f"i{n}") for n in range(4))
        is_over.set()
        raise KeyboardInterrupt  # as Python does in the main thread

    def note(report: ImportReport) -> None:
        reported.append(report.added)

    with scripted(answer) as url, Client(url) as client, pytest.raises(KeyboardInterrupt):
        client.import_items("default", source(), batch=2, concurrency=3, on_progress=note)
    assert reported == [4]


def test_ctrl_c_between_an_answer_and_its_count_loses_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    settle, reported = Bulk.settle, list[int]()
    items = (NewItem(DRAWING, f"i{n}") for n in range(2))

    def interrupted(bulk: Bulk, batch: Batch, outcome: ItemsWritten | BaseException) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        settle(bulk, batch, outcome)

    monkeypatch.setattr(Bulk, "settle", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with scripted(Request.written) as url, Client(url) as client, pytest.raises(KeyboardInterrupt):
            client.import_items("default", items, batch=2, on_progress=lambda report: reported.append(report.added))
    finally:
        signal.signal(signal.SIGINT, before)
    assert reported[-1] == 2


def test_ctrl_c_ends_an_import_that_waits_for_its_next_attempt() -> None:
    refused = threading.Event()

    def full(request: Request) -> None:
        request.refuse(429, "queue-full", Retry_After="40")
        refused.set()

    def source() -> Iterator[NewItem]:
        yield NewItem(DRAWING, "a")
        refused.wait(10)
        raise KeyboardInterrupt  # as Python does in the main thread

    started_s = time.monotonic()
    with scripted(full) as url, Client(url) as client, pytest.raises(KeyboardInterrupt):
        client.import_items("default", source(), batch=1)
    assert time.monotonic() - started_s < 20


@pytest.mark.anyio
async def test_an_import_is_cancelled_while_it_waits_for_its_next_attempt() -> None:
    refused = threading.Event()

    def full(request: Request) -> None:
        request.refuse(429, "queue-full", Retry_After="40")
        refused.set()

    with scripted(full) as url:
        async with AsyncClient(url) as client:
            started_s = time.monotonic()
            async with asyncio.TaskGroup() as group:
                running = group.create_task(client.import_items("default", (NewItem(DRAWING) for _ in range(200))))
                await asyncio.to_thread(refused.wait, 10)
                running.cancel()
            assert running.cancelled()
            assert time.monotonic() - started_s < 20


@pytest.mark.anyio
async def test_images_are_read_beside_the_event_loop() -> None:
    is_running = threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert is_running.wait(10)
            return super().read(size)

    with scripted(lambda request: request.written()) as url:
        async with AsyncClient(url) as client:
            asyncio.get_running_loop().call_later(0.01, is_running.set)
            await client.add_items("default", [NewItem(Slow(b"image"), "a")])
            is_running.clear()
            asyncio.get_running_loop().call_later(0.01, is_running.set)
            assert (await client.import_items("default", [NewItem(Slow(b"image"), "a")])).created == 1
