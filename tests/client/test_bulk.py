"""Imports: what is counted as what, and how much of the source is in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.api.images import png
from vermouth_client import AsyncClient, Client, ImportReport, ImportStopped, NewItem, Strokes
from vermouth_client.bulk import MAX_BATCH_BYTES, Bulk
from vermouth_client.errors import DiskFull, ResponseLost
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


def written(batch: list[dict[str, Any]]) -> ItemsWritten:
    return ItemsWritten(seq=1, results=[ItemOutcome(id=item["id"], status="created") for item in batch])


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


def test_large_images_make_small_batches_and_none_is_lost_between_them() -> None:
    half = bytes(MAX_BATCH_BYTES // 2)
    bulk = Bulk((NewItem(half, f"i{n}") for n in range(3)), skip=(), size=5)
    assert [[item["id"] for item in bulk.next()] for _ in range(4)] == [["i0"], ["i1"], ["i2"], []]


def test_a_batch_whose_answer_was_lost_is_sent_again_and_a_full_disk_stops_with_the_report() -> None:
    bulk = Bulk((NewItem(DRAWING, f"i{n}") for n in range(6)), skip=(), size=3)
    first = bulk.next()
    bulk.settle(first, ResponseLost({}))
    again = bulk.next()
    assert again == first
    bulk.settle(again, written(again))
    with pytest.raises(ImportStopped, match="after 3 items") as caught:
        bulk.settle(bulk.next(), DiskFull({}))
    assert caught.value.report.created == 3
    assert isinstance(caught.value.__cause__, DiskFull)
