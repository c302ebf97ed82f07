"""Images are decoded in processes of their own, with the same bits as in this one."""

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

import numpy as np
import pytest
from PIL import Image

from app.domain import Limits
from app.errors import EngineUnavailable, ImageTooLarge, UndecodableImage, UnsupportedMedia
from app.imaging import processes as processes_module
from app.imaging.decoding import ImageCache, ImageDecoder
from app.imaging.processes import DecoderProcesses
from app.imaging.raster import DecodedImage, TiledImage, decode_image, open_file
from app.imaging.sources import EncodedImage, PixelBudget
from app.runtime.telemetry import Telemetry
from app.tasks.inputs import ImageInputs
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
def processes() -> Iterator[DecoderProcesses]:
    made = DecoderProcesses(2, limits=Limits())
    yield made
    made.stop()


def decoded_here(data: bytes, limits: Limits | None = None) -> DecodedImage:
    return decode_image(open_file(data, limits or Limits()), SIZE, data)


@pytest.mark.parametrize("name", FILES)
def test_a_remote_image_has_the_bits_of_a_local_one(processes: DecoderProcesses, name: str) -> None:
    remote, here = processes.decode(FILES[name], SIZE), decoded_here(FILES[name])
    assert remote.is_sketch == (name == "drawing")
    assert np.array_equal(remote.square, here.square)
    assert replace(remote, square=here.square, decode_s=here.decode_s) == here
    assert remote.size_bytes == here.square.nbytes, "no pixels"


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
    processes = DecoderProcesses(1, limits=limits)
    try:
        with pytest.raises(error) as remote:
            processes.decode(data, SIZE)
        with pytest.raises(error) as here:
            decoded_here(data, limits)
        assert remote.value.detail == here.value.detail  # type: ignore[attr-defined]  # a ServiceError
        assert processes.decode(FILES["drawing"], SIZE).height if limits == Limits() else True
    finally:
        processes.stop()


def test_a_process_imports_neither_torch_nor_the_web() -> None:
    code = "import sys, app.imaging.processes; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "fastapi", "starlette", "uvicorn", "sqlalchemy", "prometheus_client", "structlog"}
    assert not heavy & set(done.stdout.split())


def test_where_no_process_starts_no_file_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes_module, "_CODE", "raise SystemExit(1)")
    processes = DecoderProcesses(1, limits=Limits())
    with pytest.raises(EngineUnavailable, match="No image can be decoded now"):
        processes.decode(FILES["photograph"], SIZE)
    assert processes.pids == []
    monkeypatch.undo()
    assert processes.decode(FILES["photograph"], SIZE).height == 90
    processes.stop()


def test_one_that_died_is_replaced_and_no_request_fails(processes: DecoderProcesses) -> None:
    processes.start()
    before = processes.pids
    assert len(before) == 2
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda _: processes.decode(FILES["drawing"], SIZE), range(8)))
    assert all(each.is_sketch and np.array_equal(each.square, results[0].square) for each in results)
    assert not set(before) & set(processes.pids)


def test_one_that_hangs_is_killed_and_refuses_its_own_image() -> None:
    processes = DecoderProcesses(1, limits=Limits(), timeout_s=0.0)
    processes.start()
    (hung,) = processes.pids
    try:
        with pytest.raises(UndecodableImage, match="ends the process"):
            processes.decode(FILES["photograph"], SIZE)
        assert processes.pids == []
        with pytest.raises(ProcessLookupError):
            os.kill(hung, 0)
    finally:
        processes.stop()


def test_they_end_with_a_parent_that_is_killed() -> None:
    code = (
        "import time; from app.domain import Limits; from app.imaging.processes import DecoderProcesses; "
        "made = DecoderProcesses(2, limits=Limits()); "
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
async def test_tasks_get_the_same_from_either(processes: DecoderProcesses, cache_bytes: int) -> None:
    limits, profile = Limits(), TaskProfile(resolution=SIZE, timestep=50, templates=("{}",))
    sources = [*(EncodedImage(data=data) for data in FILES.values()), EncodedImage(data=b"no image")]
    found, tiled = [], list[TiledImage]()
    for either in (processes, None):
        cache = ImageCache(max_bytes=cache_bytes)
        decoder = ImageDecoder(limits=limits, telemetry=Telemetry(), cache=cache, workers=2)
        decoder._processes = either
        budget = PixelBudget(max_pixels=limits.max_request_pixels, max_images=limits.max_request_images)
        inputs = ImageInputs(decoder, None, None)  # type: ignore[arg-type]  # no item is read
        found.append(await inputs.prepare(sources, budget, profile))
        # Larger than a square, so that it has tiles: its pixels are decoded here.
        tiled.append(await inputs.tiles(sources[1], budget, profile))
        decoder._processes = None
        decoder.stop()
    for remote, here in zip(*found, strict=True):
        if isinstance(here, DecodedImage):
            assert isinstance(remote, DecodedImage)
            assert np.array_equal(remote.square, here.square)
            assert replace(remote, square=here.square, decode_s=here.decode_s) == here
        else:
            assert isinstance(remote, UndecodableImage)
            assert isinstance(here, UndecodableImage)
    assert tiled[0].keys == tiled[1].keys
    assert len(tiled[0].squares) > 1
