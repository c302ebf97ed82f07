"""Pictures decoded once, and kept within a bound."""

import threading
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain import Picture
from app.errors import UndecodableImage
from app.imaging.cache import PictureCache

PIXELS_BYTES = 10 * 10 * 3


@dataclass(frozen=True, slots=True)
class Made:
    """Something made of a picture."""

    name: str
    size_bytes: int = 100
    height: int = 10
    width: int = 10


class Decoder:
    """Counts how often it decodes, and can be held up."""

    def __init__(self) -> None:
        self.calls = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.has_begun = threading.Event()

    def __call__(self) -> Picture:
        self.calls += 1
        self.has_begun.set()
        assert self.may_go_on.wait(10)
        return Picture(np.zeros((10, 10, 3), np.uint8))


@pytest.fixture
def decode() -> Decoder:
    return Decoder()


def test_one_file_is_decoded_once_for_everything_made_of_it(decode: Decoder) -> None:
    cache = PictureCache(max_bytes=10_000)
    first = cache.made(b"a", "canonical", decode, lambda _: Made("canonical"))
    again = cache.made(b"a", "canonical", decode, lambda _: Made("another"))
    views = cache.made(b"a", "views", decode, lambda _: Made("views"))
    assert again is first
    assert views.name == "views"
    assert decode.calls == 1
    assert PIXELS_BYTES + 2 * 100 <= cache.size_bytes <= PIXELS_BYTES + 2 * 100 + 1024


def of_pixels(picture: Picture) -> Made:
    return Made("canonical", height=len(picture.pixels))


def of_forms(picture: Picture) -> Made:
    picture.square(8)
    return Made("views", height=picture.height)


def test_what_was_made_of_a_file_is_known_and_what_its_forms_tell() -> None:
    cache, reads = PictureCache(max_bytes=10_000), list[int]()

    def read() -> NDArray[np.uint8]:
        reads.append(1)
        return np.zeros((10, 12, 3), np.uint8)

    assert cache.known(b"a", "views", of_forms) is None
    views = cache.made(b"a", "views", lambda: Picture(read), of_forms)
    assert cache.known(bytes(bytearray(b"a")), "views", of_pixels) is views
    assert cache.known(b"a", "canonical", of_pixels) is None
    assert cache.known(b"b", "views", of_forms) is None
    more = cache.known(b"a", "more views", of_forms)
    assert more == views
    assert cache.known(b"a", "more views", of_pixels) is more
    assert cache.size_bytes == 8 * 8 * 3 + 2 * 100 + 1 + 512, "the form, what was made twice, the file, the entry"
    assert len(reads) == 1
    assert cache.made(b"a", "canonical", lambda: Picture(read), of_pixels).height == 10
    assert len(reads) == 2


def test_who_asks_what_is_known_waits_for_nobody(decode: Decoder) -> None:
    cache = PictureCache(max_bytes=10_000)
    views = cache.made(b"a", "views", decode, of_forms)
    is_making, may_go_on = threading.Event(), threading.Event()

    def slowly(picture: Picture) -> Made:
        is_making.set()
        assert may_go_on.wait(10)
        return of_pixels(picture)

    other = threading.Thread(target=lambda: cache.made(b"a", "canonical", decode, slowly))
    other.start()
    assert is_making.wait(10)
    assert cache.known(b"a", "views", of_forms) is views
    assert cache.known(b"a", "canonical", of_pixels) is None
    may_go_on.set()
    other.join(10)
    assert cache.known(b"a", "canonical", of_pixels) is not None


def test_equal_requests_at_once_decode_once(decode: Decoder) -> None:
    cache, found = PictureCache(max_bytes=10_000), list[Made]()
    decode.may_go_on.clear()

    def ask() -> None:
        found.append(cache.made(b"a", "canonical", decode, lambda _: Made("canonical")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert decode.has_begun.wait(10)
    decode.may_go_on.set()
    for thread in threads:
        thread.join(10)
    assert decode.calls == 1
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_the_least_recently_used_goes_first(decode: Decoder) -> None:
    one = PIXELS_BYTES + 100 + 1 + 512
    cache = PictureCache(max_bytes=2 * one)
    for name in (b"a", b"b", b"a", b"c"):
        cache.made(name, "views", decode, lambda _: Made("views"))
    assert cache.size_bytes == 2 * one
    assert decode.calls == 3
    cache.made(b"a", "views", decode, lambda _: Made("views"))
    assert decode.calls == 3
    cache.made(b"b", "views", decode, lambda _: Made("views"))
    assert decode.calls == 4


def test_what_is_over_the_bound_is_answered_and_not_kept(decode: Decoder) -> None:
    cache = PictureCache(max_bytes=PIXELS_BYTES)
    for _ in range(2):
        assert cache.made(b"a", "views", decode, lambda _: Made("views")).name == "views"
    assert decode.calls == 2
    assert cache.size_bytes == 0


def test_a_failure_is_raised_and_the_next_to_ask_tries_again(decode: Decoder) -> None:
    cache = PictureCache(max_bytes=10_000)

    def damaged() -> Picture:
        raise UndecodableImage("The image is damaged.")

    with pytest.raises(UndecodableImage):
        cache.made(b"a", "views", damaged, lambda _: Made("views"))
    assert cache.made(b"a", "views", decode, lambda _: Made("views")).name == "views"


def test_a_conversion_that_fails_keeps_the_picture(decode: Decoder) -> None:
    cache = PictureCache(max_bytes=10_000)

    def blank(_: Picture) -> Made:
        raise UndecodableImage("The image holds nothing to look at.")

    with pytest.raises(UndecodableImage):
        cache.made(b"a", "canonical", decode, blank)
    cache.made(b"a", "views", decode, lambda _: Made("views"))
    assert decode.calls == 1
