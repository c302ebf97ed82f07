"""Images are decoded in processes, which may die or hang: that is their image's error, and nobody else's."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.domain import Limits
from app.errors import (
    EngineUnavailable,
    ImageTooLarge,
    InferenceFailed,
    ServiceError,
    TooMuchWork,
    UndecodableImage,
    UnsupportedMedia,
)
from app.imaging import child
from app.imaging import fork_server as fork_server_module
from app.imaging.drawings import LEAST_SIDE, draw_on_canvas, open_strokes, open_svg
from app.imaging.fork_server import ForkServer
from app.imaging.messages import Answer, DecodeRequest, Failure, Opened, Product, pack_reply, unpack_reply
from app.imaging.processes import DecoderProcesses
from app.imaging.raster import DecodedImage, TiledImage, decode_image, open_file, thumbnail_of, tile_image
from app.imaging.sources import EncodedImage, StrokesImage, SvgImage
from tests.app.imaging import hostile

pytestmark = pytest.mark.anyio
SIZE = 128
LIMITS = Limits()
PHOTOGRAPH = hostile.photograph(150, 90)
DRAWING = Image.new("RGB", (300, 200), "white")
DRAWING.paste("black", (80, 60, 84, 150))
DRAWING.paste("black", (80, 60, 200, 64))
DRAWING.paste("black", (200, 60, 204, 150))
CLEAR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8))
STROKES = StrokesImage(strokes=[[[0.0, 50.0, 100.0], [90.0, 0.0, 90.0]]], width=120, height=100)
SVG = '<svg width="90" height="50"><path d="M5 5L80 40" stroke="black"/></svg>'


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


@pytest.fixture
async def processes() -> AsyncIterator[DecoderProcesses]:
    made = DecoderProcesses(1, limits=LIMITS)
    yield made
    await made.stop()


def request_of(
    source: bytes | str | StrokesImage, product: Product = Product.DECODED, limits: Limits = LIMITS
) -> DecodeRequest:
    image: EncodedImage | SvgImage | StrokesImage
    if isinstance(source, StrokesImage):
        image = source
    else:
        image = EncodedImage(data=source) if isinstance(source, bytes) else SvgImage(text=source)
    return DecodeRequest(source=image, product=product, size=SIZE, limits=limits)


def free(width: int, height: int) -> None:
    """Charge nothing."""


async def decoded(processes: DecoderProcesses, source: bytes | str | StrokesImage) -> DecodedImage:
    value = (await processes.make(request_of(source), free)).value
    assert isinstance(value, DecodedImage)
    return value


def assert_same(remote: DecodedImage, here: DecodedImage) -> None:
    assert np.array_equal(remote.square, here.square)
    assert replace(remote, square=here.square) == here


@pytest.mark.parametrize("name", FILES)
async def test_a_file_has_the_same_bits_in_a_process(processes: DecoderProcesses, name: str) -> None:
    remote, opened = await decoded(processes, FILES[name]), open_file(FILES[name], LIMITS)
    assert remote.is_sketch == (name == "drawing")
    assert_same(remote, decode_image(opened, SIZE, b""))


async def test_drawings_have_the_same_bits_in_a_process(processes: DecoderProcesses) -> None:
    assert_same(await decoded(processes, STROKES), decode_image(open_strokes(STROKES, SIZE, LIMITS), SIZE))
    assert_same(await decoded(processes, SVG), decode_image(open_svg(SVG, LIMITS, least_side=LEAST_SIDE), SIZE))


async def test_tiles_and_thumbnails_have_the_same_bits_in_a_process(processes: DecoderProcesses) -> None:
    pixels = open_file(FILES["turned"], LIMITS).read()
    for source, there in ((FILES["turned"], pixels), (STROKES, draw_on_canvas(STROKES))):
        tiled = (await processes.make(request_of(source, Product.TILED), free)).value
        here = tile_image(there, SIZE, LIMITS.max_tiles)
        assert isinstance(tiled, TiledImage)
        assert (tiled.height, tiled.width, tiled.boxes) == (here.height, here.width, here.boxes)
        assert tiled.keys == here.keys
        assert all(np.array_equal(*pair) for pair in zip(tiled.squares, here.squares, strict=True))
    thumbnail = await processes.make(request_of(FILES["turned"], Product.THUMBNAIL), free)
    assert thumbnail.value == thumbnail_of(pixels, SIZE)


@pytest.mark.parametrize(
    ("data", "limits", "error"),
    [
        (FILES["photograph"][:-400], Limits(), UndecodableImage),
        (b"\x00\x00\x01\x00 an icon", Limits(), UnsupportedMedia),
        (FILES["photograph"], Limits(max_image_pixels=1000), ImageTooLarge),
    ],
    ids=["damaged", "foreign", "large"],
)
async def test_errors_come_back_as_they_were(
    processes: DecoderProcesses, data: bytes, limits: Limits, error: type[ServiceError]
) -> None:
    with pytest.raises(error) as remote:
        await processes.make(request_of(data, limits=limits), free)
    with pytest.raises(error) as here:
        decode_image(open_file(data, limits), SIZE, data)
    assert remote.value.detail == here.value.detail
    assert (await decoded(processes, FILES["drawing"])).height == 200


@pytest.mark.parametrize(
    "reply",
    [
        Opened(width=3, height=4, work_pixels=12),
        Answer(value=b"a thumbnail", decode_s=0.5),
        Failure(traceback="a traceback"),
        TooMuchWork("Too long."),
    ],
    ids=lambda reply: type(reply).__name__,
)
def test_a_reply_arrives_as_it_was_sent(reply: Opened | Answer | Failure | ServiceError) -> None:
    arrived = unpack_reply(*pack_reply(reply), SIZE)
    assert (str(arrived), type(arrived)) == (str(reply), type(reply))


@pytest.mark.parametrize("header", [b"", b"[]", b"{}", b'{"error": "forbidden", "detail": ""}', b'{"opened": [1]}'])
def test_what_is_no_reply_is_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match="no reply"):
        unpack_reply(header, b"", SIZE)


async def test_a_refused_charge_leaves_the_process_for_the_next_image(processes: DecoderProcesses) -> None:
    def refuse(width: int, height: int) -> None:
        raise ImageTooLarge(f"{width} by {height}")

    with pytest.raises(ImageTooLarge, match="150 by 90"):
        await processes.make(request_of(FILES["photograph"]), refuse)
    before = set(processes.pids)
    assert (await decoded(processes, FILES["photograph"])).height == 90
    assert before <= set(processes.pids)


def test_a_process_imports_neither_torch_nor_the_web() -> None:
    code = "import sys, app.imaging.child; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "fastapi", "starlette", "uvicorn", "sqlalchemy", "prometheus_client", "structlog"}
    assert not heavy & set(done.stdout.split())


@pytest.fixture
def own_server() -> Iterator[ForkServer]:
    server = ForkServer(limits=LIMITS)
    yield server
    server.stop()


async def test_where_no_process_starts_no_file_is_blamed(
    own_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server_module, "_CODE", "raise SystemExit(1)")
    processes = DecoderProcesses(1, limits=LIMITS, fork_server=own_server)
    with pytest.raises(EngineUnavailable, match="No image can be decoded now"):
        await decoded(processes, FILES["photograph"])
    assert processes.pids == []
    monkeypatch.undo()
    assert (await decoded(processes, FILES["photograph"])).height == 90
    await processes.stop()


async def test_a_fork_server_that_died_is_replaced_and_no_request_fails(own_server: ForkServer) -> None:
    processes = DecoderProcesses(1, limits=LIMITS, fork_server=own_server)
    await decoded(processes, FILES["photograph"])
    assert own_server._process is not None
    before = processes.pids
    own_server._process.kill()
    until_s = time.monotonic() + 20
    while any(_is_running(pid) for pid in before):  # they end with it
        assert time.monotonic() < until_s
        await asyncio.sleep(0.02)
    assert (await decoded(processes, FILES["photograph"])).height == 90
    await processes.stop()


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(own_server: ForkServer) -> None:
    pid, connection = own_server.fork()
    connection.close()
    control, parent = own_server._control, own_server._process
    assert control is not None
    assert parent is not None
    os.kill(parent.pid, signal.SIGSTOP)
    control.settimeout(0.1)
    assert own_server.end(pid) == 0
    later, connection = own_server.fork()
    assert Path(f"/proc/{later}/stat").read_text().split()[3] == str(own_server._process and own_server._process.pid)
    connection.close()


def test_a_process_of_others_is_not_ended() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
    assert child._end(pid) == 0
    os.kill(pid, signal.SIGKILL)  # it was there


async def test_idle_processes_that_died_are_replaced_and_no_request_fails(processes: DecoderProcesses) -> None:
    await decoded(processes, FILES["drawing"])
    before = processes.pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    results = await asyncio.gather(*(decoded(processes, FILES["drawing"]) for _ in range(8)))
    assert all(each.is_sketch and np.array_equal(each.square, results[0].square) for each in results)
    assert not set(before) & set(processes.pids)


async def test_an_image_that_takes_too_long_is_refused_and_small_ones_do_not_wait(processes: DecoderProcesses) -> None:
    started_s = time.perf_counter()
    attack = [asyncio.create_task(decoded(processes, hostile.SLOW)) for _ in range(2)]
    await asyncio.sleep(0)  # they come first
    small_s = started_s
    while not all(task.done() for task in attack):
        await decoded(processes, FILES["photograph"])
        now_s = time.perf_counter()
        # Two hundred milliseconds of CPU for each attacker at most, on a busy machine.
        assert now_s - small_s < 4.0
        small_s = now_s
    for task in attack:
        with pytest.raises(TooMuchWork, match="takes too long"):
            await task
    assert len(processes.pids) <= 3


async def test_an_image_that_takes_too_much_memory_is_refused(processes: DecoderProcesses) -> None:
    started_s = time.perf_counter()
    with pytest.raises((UndecodableImage, TooMuchWork)):
        await decoded(processes, hostile.LAYERS)
    assert time.perf_counter() - started_s < 20
    assert (await decoded(processes, FILES["photograph"])).height == 90


async def test_a_fault_of_the_service_is_no_fault_of_the_image(processes: DecoderProcesses) -> None:
    # A size that no square has.
    broken = replace(request_of(FILES["photograph"]), size=-1)
    with pytest.raises(InferenceFailed, match="fault of the service"):
        await processes.make(broken, free)


async def test_the_memory_of_large_images_goes_with_their_process(processes: DecoderProcesses) -> None:
    large = file_of(Image.new("RGB", (4000, 4000), "grey"))
    before_bytes = rss_bytes(os.getpid())
    await asyncio.gather(*(decoded(processes, large) for _ in range(4)))
    await decoded(processes, FILES["photograph"])
    assert all(rss_bytes(pid) < 150_000_000 for pid in processes.pids)
    assert rss_bytes(os.getpid()) - before_bytes < 10_000_000
    await asyncio.gather(*processes._tasks)
    assert len(processes.pids) <= 2


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def test_they_end_with_a_server_that_is_killed() -> None:
    code = (
        "import time; from app.domain import Limits; from app.imaging.fork_server import ForkServer; "
        "made = ForkServer(limits=Limits()); "
        "forks = [made.fork() for _ in range(2)]; "
        "print(made._process.pid, *(fork[0] for fork in forks), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
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
