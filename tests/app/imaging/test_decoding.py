"""Pictures are looked at in processes of their own, with the bits of this one."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import app.imaging.decoding
from app.domain import Limits, Picture
from app.errors import EngineUnavailable, ImageTooLarge, UndecodableImage, UnsupportedMedia
from app.imaging.cache import PictureCache
from app.imaging.decoding import Decoders, FarPicture
from app.imaging.files import open_file
from app.imaging.sources import EncodedImage, ImageDecoder, PixelBudget
from app.imaging.worker import Job, look
from app.runtime.telemetry import Telemetry
from app.tasks.pictures import Pictures, Prepared
from models.types import TaskProfile

SIZE = 128
RNG = np.random.default_rng(0)
PHOTOGRAPH = Image.fromarray(RNG.integers(0, 256, (90, 150, 3), dtype=np.uint8))
DRAWING = Image.new("RGB", (300, 200), "white")
DRAWING.paste("black", (80, 60, 84, 150))
DRAWING.paste("black", (80, 60, 200, 64))
DRAWING.paste("black", (200, 60, 204, 150))
CLEAR = Image.fromarray(RNG.integers(0, 256, (40, 60, 4), dtype=np.uint8))


def file_of(image: Image.Image, kind: str = "PNG", *, turned: bool = False) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    if turned:
        exif[0x0112] = 6
    image.save(out, kind, exif=exif)
    return out.getvalue()


FILES = {
    "photograph": file_of(PHOTOGRAPH),
    "drawing": file_of(DRAWING),
    "transparent": file_of(CLEAR),
    "turned": file_of(PHOTOGRAPH, "JPEG", turned=True),
}


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    made = Decoders(2, limits=Limits(), telemetry=Telemetry())
    yield made
    made.stop()


@pytest.mark.parametrize("name", FILES)
def test_a_file_far_away_is_seen_as_here(decoders: Decoders, name: str) -> None:
    def read() -> np.typing.NDArray[np.uint8]:
        return np.ascontiguousarray(open_file(FILES[name], Limits()).read())

    far, here = FarPicture(FILES[name], read, decoders), Picture(read())
    sketch, expected = far.sketch(SIZE), here.sketch(SIZE)
    assert (sketch is None) == (expected is None) == (name != "drawing")
    if sketch is not None and expected is not None:
        assert np.array_equal(sketch, expected)
    else:
        assert np.array_equal(far.square(SIZE), here.square(SIZE))
    assert (far.height, far.width) == (here.height, here.width)
    held = far.size_bytes
    forms = sum(form.nbytes for form in (*far.squares.values(), *far.sketches.values()) if form is not None)
    assert held == forms, "no pixels until they are asked for"
    assert np.array_equal(far.pixels, here.pixels)
    assert np.array_equal(far.square(SIZE // 2), here.square(SIZE // 2))
    held += here.square(SIZE // 2).nbytes
    assert far.size_bytes == held + here.pixels.nbytes


@pytest.mark.parametrize(
    ("data", "limits", "error"),
    [
        (FILES["photograph"][:-400], Limits(), UndecodableImage),
        (b"II*\x00 a TIFF", Limits(), UnsupportedMedia),
        (FILES["photograph"], Limits(max_image_pixels=1000), ImageTooLarge),
    ],
    ids=["damaged", "foreign", "large"],
)
def test_errors_come_back_as_they_were(data: bytes, limits: Limits, error: type[Exception]) -> None:
    decoders = Decoders(1, limits=limits, telemetry=Telemetry())
    try:
        with pytest.raises(error) as far:
            decoders.look(data, SIZE)
        with pytest.raises(error) as here:
            look(Job(data=data, limits=limits, size=SIZE))
        assert far.value.detail == here.value.detail  # type: ignore[attr-defined]  # a ServiceError
        assert decoders.look(FILES["drawing"], SIZE).height if limits == Limits() else True
    finally:
        decoders.stop()


def test_forms_of_pixels_that_are_here_are_made_here() -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    absent = SimpleNamespace(look=never)
    pixels = np.asarray(PHOTOGRAPH)
    picture = FarPicture(FILES["photograph"], lambda: pixels, absent)  # type: ignore[arg-type]  # never asked
    assert picture.pixels is pixels
    assert np.array_equal(picture.square(SIZE), Picture(pixels).square(SIZE))
    assert picture.sketch(SIZE) is None


def test_where_no_process_starts_no_file_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.imaging.decoding, "_CODE", "raise SystemExit(1)")
    decoders = Decoders(1, limits=Limits(), telemetry=Telemetry())
    with pytest.raises(EngineUnavailable, match="No image can be decoded now"):
        decoders.look(FILES["photograph"], SIZE)
    assert decoders.pids == []
    monkeypatch.undo()
    assert decoders.look(FILES["photograph"], SIZE).height == 90
    decoders.stop()


def test_one_that_died_is_started_anew_and_nobody_notices(decoders: Decoders) -> None:
    decoders.start()
    before = decoders.pids
    assert len(before) == 2
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    with ThreadPoolExecutor(2) as threads:
        looks = list(threads.map(lambda _: decoders.look(FILES["drawing"], SIZE), range(8)))
    assert all(each.is_sketch and np.array_equal(each.form, looks[0].form) for each in looks)
    assert not set(before) & set(decoders.pids)


def test_one_that_hangs_is_ended_and_costs_its_own_picture() -> None:
    decoders = Decoders(1, limits=Limits(), telemetry=Telemetry(), patience_s=0.0)
    decoders.start()
    (hung,) = decoders.pids
    try:
        with pytest.raises(UndecodableImage, match="ends the process"):
            decoders.look(FILES["photograph"], SIZE)
        assert decoders.pids == []
        with pytest.raises(ProcessLookupError):
            os.kill(hung, 0)
    finally:
        decoders.stop()


def test_they_end_with_a_parent_that_is_killed() -> None:
    code = (
        "import time; from app.imaging.decoding import Decoders; from app.domain import Limits; "
        "from app.runtime.telemetry import Telemetry; made = Decoders(2, limits=Limits(), telemetry=Telemetry()); "
        "made.start(); print(*made.pids, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    until_s = time.monotonic() + 20
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < until_s
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.anyio
@pytest.mark.parametrize("cache_bytes", [0, 1 << 24], ids=["no-cache", "cache"])
async def test_tasks_get_the_same_from_either(decoders: Decoders, cache_bytes: int) -> None:
    limits, profile = Limits(), TaskProfile(resolution=SIZE, timestep=50, templates=("{}",))
    sources = [*(EncodedImage(data=data) for data in FILES.values()), EncodedImage(data=b"no image")]
    found = []
    for far in (decoders, None):
        cache = PictureCache(max_bytes=cache_bytes)
        decoder = ImageDecoder(limits=limits, telemetry=Telemetry(), cache=cache, workers=2)
        decoder._decoders = far
        budget = PixelBudget(max_pixels=limits.max_request_pixels, max_images=limits.max_request_images)
        pictures = Pictures(decoder, None, None)  # type: ignore[arg-type]  # no item is read
        found.append(await pictures.prepare(sources, budget, profile))
        decoder._decoders = None
        decoder.stop()
    for far_away, here in zip(*found, strict=True):
        if isinstance(here, Prepared):
            assert isinstance(far_away, Prepared)
            assert np.array_equal(far_away.square, here.square)
            assert replace(far_away, square=here.square) == here
        else:
            assert isinstance(far_away, UndecodableImage)
            assert isinstance(here, UndecodableImage)
