"""A decoder process: `main` is the server that forks it, `serve` answers its requests one after another.

It imports neither torch nor the web, so that it is small and starts fast.
"""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from app.errors import ServiceError, TooMuchWork
from app.imaging.drawings import LEAST_SIDE, draw_on_canvas, open_strokes, open_svg
from app.imaging.messages import (
    FRAME,
    ORDER,
    POINT_PIXELS,
    READY,
    YES,
    Answer,
    DecodeRequest,
    Failure,
    Opened,
    Product,
    Reply,
    open_limit_s,
    pack_reply,
    read_limit_s,
    unpack_request,
    work_limit_s,
)
from app.imaging.raster import OpenedImage, decode_image, open_file, thumbnail_of, tile_image
from app.imaging.sources import EncodedImage, StrokesImage, SvgImage
from app.runtime.process import DECODER_NICENESS, WORKER_NICENESS, be_nice

_PR_SET_PDEATHSIG = 1  # from prctl.h


def main() -> None:
    """Fork processes as the server orders, until the server is gone; they end with this process."""
    # A terminal or a supervisor signals the whole group; the server drains, and this process ends with its socket.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    be_nice(DECODER_NICENESS)
    memory_bytes = int(sys.argv[2])
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    # The server being gone is no error here.
    with contextlib.suppress(OSError), socket.socket(fileno=int(sys.argv[1])) as control:
        control.sendall(READY)
        while True:
            message, sockets, _, _ = socket.recv_fds(control, ORDER.size, 1)
            if not message:
                return
            if sockets:
                control.sendall(ORDER.pack(_fork(control, sockets[0], memory_bytes)))
            else:
                control.sendall(ORDER.pack(_end(ORDER.unpack(message)[0])))


def serve(connection: socket.socket) -> None:
    """Answer requests until the server closes the socket, or one was not quick: its memory goes with the process."""
    with connection.makefile("rb") as reader:
        while header := reader.read(FRAME.size):
            lengths = FRAME.unpack(header)
            request = unpack_request(reader.read(lengths[0]), reader.read(lengths[1]))
            if not request.is_quick:
                be_nice(WORKER_NICENESS)
            reply = _answer(request, lambda opened: _may_go_on(connection, reader, opened))
            _limit_cpu(0)
            if reply is not None:
                _send(connection, reply)
            if not request.is_quick:
                return


def _fork(control: socket.socket, number: int, memory_bytes: int) -> int:
    try:
        pid = os.fork()
    except OSError:  # no process or memory is free: those that run go on
        pid = -1
    if pid:
        os.close(number)
        return pid
    try:
        control.close()
        _confine(memory_bytes)
        with socket.socket(fileno=number) as connection:
            serve(connection)
    finally:
        os._exit(0)


def _end(pid: int) -> int:
    """Kill a process and return its status: only this reaps it, so that its id is not another's before."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        return status
    except ChildProcessError:  # of a fork server before: the id may be another's now
        return 0


def _confine(memory_bytes: int) -> None:
    """Bound this process's memory, and end it with its parent; silence what a library prints when it aborts."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.close(silence)
    statm = Path("/proc/self/statm")
    mapped_bytes = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    limit_bytes = mapped_bytes + memory_bytes
    # Elsewhere than on Linux a limit may be unknown or not enforced.
    for kind, most in ((resource.RLIMIT_AS, limit_bytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def _limit_cpu(seconds: float) -> None:
    # Nothing handles the signal: the kernel ends the process, whatever it is doing.
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(request: DecodeRequest, may_go_on: Callable[[Opened], bool]) -> Reply | None:
    source = request.source
    try:
        _limit_cpu(open_limit_s(request))
        opened = _open(request)
        work_pixels = opened.width * opened.height + POINT_PIXELS * opened.points
        if isinstance(source, StrokesImage) and request.product is Product.TILED:
            work_pixels += round(source.width * source.height)
        size = Opened(width=opened.width, height=opened.height, work_pixels=work_pixels)
        if request.product is Product.SIZE:
            return size
        return _made(request, opened, work_pixels) if may_go_on(size) else None
    except ServiceError as err:
        return err
    except MemoryError:
        return TooMuchWork("The image needs more memory than one image may take.")
    except Exception:  # noqa: BLE001 - the server logs it
        return Failure(traceback=traceback.format_exc())


def _open(request: DecodeRequest) -> OpenedImage:
    source, limits = request.source, request.limits
    if isinstance(source, StrokesImage):
        return open_strokes(source, request.size, limits)
    if isinstance(source, SvgImage):
        least_side = 1 if request.product is Product.TILED else LEAST_SIDE  # masks have the drawing's own size
        return open_svg(source.text, limits, least_side=least_side)
    return open_file(source.data, limits)


def _made(request: DecodeRequest, opened: OpenedImage, work_pixels: int) -> Answer:
    source, decode_s = request.source, 0.0

    def read() -> NDArray[np.uint8]:
        nonlocal decode_s
        started_s = time.perf_counter()
        _limit_cpu(read_limit_s(work_pixels, request))
        pixels = opened.read()
        if isinstance(source, StrokesImage) and request.product is Product.TILED:
            pixels = draw_on_canvas(source)  # reading them as a sketch has checked that there is something to draw
        _limit_cpu(work_limit_s(work_pixels, request))
        decode_s = time.perf_counter() - started_s
        return pixels

    if request.product is Product.TILED:
        return Answer(value=tile_image(read(), request.size, request.limits.max_tiles, request.tile), decode_s=decode_s)
    if request.product is Product.THUMBNAIL:
        return Answer(value=thumbnail_of(read(), request.size), decode_s=decode_s)
    # The file stays in the server: sending it back would take longer than the square.
    file = b"" if isinstance(source, EncodedImage) else None
    return Answer(value=decode_image(replace(opened, read=read), request.size, file), decode_s=decode_s)


def _may_go_on(connection: socket.socket, reader: BinaryIO, opened: Opened) -> bool:
    _send(connection, opened)
    answer = reader.read(1)
    if not answer:
        os._exit(0)  # the server is gone
    return answer == YES


def _send(connection: socket.socket, reply: Reply) -> None:
    header, data = pack_reply(reply)
    connection.sendall(FRAME.pack(len(header), len(data)) + header)
    connection.sendall(data)
