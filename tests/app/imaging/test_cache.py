"""Images are decoded once and cached within a bound."""

import asyncio

import numpy as np
import pytest

from app.errors import UndecodableImage
from app.imaging.decoding import ImageCache
from app.imaging.raster import DecodedImage, TiledImage

pytestmark = pytest.mark.anyio
SIDE = 8
SQUARE_BYTES = SIDE * SIDE * 3
ENTRY_BYTES = SQUARE_BYTES + 1 + 512
"""The square, the file and the entry."""


class Decoder:
    """Counts how often it decodes, and can be held up."""

    def __init__(self) -> None:
        self.calls = 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.has_begun = asyncio.Event()

    async def __call__(self) -> DecodedImage:
        self.calls += 1
        self.has_begun.set()
        await asyncio.wait_for(self.may_go_on.wait(), 10)
        square = np.zeros((SIDE, SIDE, 3), np.uint8)
        return DecodedImage(square=square, key="", is_sketch=False, height=10, width=10, data=b"a")


async def tiled() -> TiledImage:
    return TiledImage(height=10, width=10, boxes=[], squares=[np.zeros((SIDE, SIDE, 3), np.uint8)], keys=[""])


@pytest.fixture
def decode() -> Decoder:
    return Decoder()


async def test_a_result_is_made_once_and_each_kind_and_size_has_its_own(decode: Decoder) -> None:
    cache = ImageCache(max_bytes=10_000)
    assert cache.get(b"a", SIDE, DecodedImage) is None
    first = await cache.get_or_make(b"a", SIDE, DecodedImage, decode)
    assert (await cache.get_or_make(bytes(bytearray(b"a")), SIDE, DecodedImage, decode)) is first
    assert cache.get(bytes(bytearray(b"a")), SIDE, DecodedImage) is first
    assert decode.calls == 1
    assert cache.size_bytes == ENTRY_BYTES
    assert cache.get(b"a", SIDE, TiledImage) is None
    views = await cache.get_or_make(b"a", SIDE, TiledImage, tiled)
    assert cache.get(b"a", SIDE, TiledImage) is views
    assert cache.get(b"a", 2 * SIDE, DecodedImage) is None
    assert cache.get(b"b", SIDE, DecodedImage) is None
    assert cache.size_bytes == 2 * ENTRY_BYTES


async def test_a_lookup_waits_for_nobody(decode: Decoder) -> None:
    cache = ImageCache(max_bytes=10_000)
    views = await cache.get_or_make(b"a", SIDE, TiledImage, tiled)
    decode.may_go_on.clear()
    other = asyncio.create_task(cache.get_or_make(b"a", SIDE, DecodedImage, decode))
    await asyncio.wait_for(decode.has_begun.wait(), 10)
    assert cache.get(b"a", SIDE, TiledImage) is views
    assert cache.get(b"a", SIDE, DecodedImage) is None
    decode.may_go_on.set()
    await other
    assert cache.get(b"a", SIDE, DecodedImage) is not None


async def test_equal_requests_at_once_decode_once(decode: Decoder) -> None:
    cache = ImageCache(max_bytes=10_000)
    decode.may_go_on.clear()
    asked = [asyncio.create_task(cache.get_or_make(b"a", SIDE, DecodedImage, decode)) for _ in range(8)]
    await asyncio.wait_for(decode.has_begun.wait(), 10)
    decode.may_go_on.set()
    found = await asyncio.gather(*asked)
    del asked
    assert decode.calls == 1
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert not cache._in_flight, "no lock outlives its requests"


async def test_the_least_recently_used_goes_first(decode: Decoder) -> None:
    cache = ImageCache(max_bytes=2 * ENTRY_BYTES)
    for name in (b"a", b"b", b"a", b"c"):
        await cache.get_or_make(name, SIDE, DecodedImage, decode)
    assert cache.size_bytes == 2 * ENTRY_BYTES
    assert decode.calls == 3
    await cache.get_or_make(b"a", SIDE, DecodedImage, decode)
    assert decode.calls == 3
    await cache.get_or_make(b"b", SIDE, DecodedImage, decode)
    assert decode.calls == 4


async def test_a_result_over_the_bound_is_returned_and_not_cached(decode: Decoder) -> None:
    cache = ImageCache(max_bytes=SQUARE_BYTES)
    for _ in range(2):
        assert (await cache.get_or_make(b"a", SIDE, DecodedImage, decode)).height == 10
    assert decode.calls == 2
    assert cache.size_bytes == 0


async def test_a_failure_is_raised_and_the_next_request_tries_again(decode: Decoder) -> None:
    cache = ImageCache(max_bytes=10_000)

    async def damaged() -> DecodedImage:
        raise UndecodableImage("The image is damaged.")

    views = await cache.get_or_make(b"a", SIDE, TiledImage, tiled)
    with pytest.raises(UndecodableImage):
        await cache.get_or_make(b"a", SIDE, DecodedImage, damaged)
    assert cache.get(b"a", SIDE, TiledImage) is views, "a failure drops nothing"
    assert (await cache.get_or_make(b"a", SIDE, DecodedImage, decode)).height == 10
    assert decode.calls == 1
