"""The messages between the server and its decoder processes, a header and bytes behind it, and the server's end.

Requests are pickled. Answers are JSON: a file may have taken over the process that sends them.
"""

import asyncio
import json
import pickle
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from app.domain import MEGAPIXEL, Limits
from app.errors import (
    ImageTooLarge,
    InferenceFailed,
    Invalid,
    Malformed,
    ServiceError,
    TooMuchWork,
    UndecodableImage,
    UnsupportedMedia,
)
from app.imaging.raster import DecodedImage, TiledImage
from app.imaging.sources import EncodedImage, StrokesImage, SvgImage
from models.transforms import ViewBox

ORDER = struct.Struct(">i")  # to the fork server: 0 and a socket to fork, or an id to end; its answer: an id or status
READY = ORDER.pack(1)
YES, NO = b"y", b"n"
FRAME = struct.Struct(">II")  # lengths of the header and of the bytes behind it
QUICK_PIXELS = 2 * MEGAPIXEL  # an image of more work is decoded beside the small ones, which never wait for it
START_TIMEOUT_S = 60.0  # the imports of a first process take half a second
MAX_REPLY_BYTES = 1 << 30
_WALL_FACTOR, _WALL_SPARE_S = 3.0, 2.0  # of a CPU limit: a loaded machine gives a process a third of a core
POINT_PIXELS = 1000  # work of a point or an element of a drawing, in pixels of a file
_ERRORS: dict[str, type[ServiceError]] = {
    kind.code: kind
    for kind in (
        UndecodableImage, UnsupportedMedia, ImageTooLarge, TooMuchWork, Invalid, Malformed, InferenceFailed,
    )
}  # fmt: skip


class Product(StrEnum):
    """What a decoder process makes of an image."""

    SIZE = "size"
    DECODED = "decoded"
    TILED = "tiled"
    THUMBNAIL = "thumbnail"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRequest:
    """An image and what to make of it; `size` is the side of a square, px, `tile` that of what a tile shows.

    A quick request has a tenth of a second for what a small image takes; one that needs longer is asked again.
    """

    source: EncodedImage | StrokesImage | SvgImage
    product: Product
    size: int
    limits: Limits
    tile: int | None = None  # in pixels of the image; None for `size`
    is_quick: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Size of an image whose header was read, and the work to decode it; the process waits for a yes or no."""

    width: int
    height: int
    work_pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was made of an image, and how long its pixels took to read."""

    value: DecodedImage | TiledImage | bytes
    decode_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A fault of ours, for the log."""

    traceback: str


Reply = Opened | Answer | Failure | ServiceError


def open_limit_s(request: DecodeRequest) -> float:
    """Seconds of CPU to read a header: Pillow walks a PNG's chunks at 30 MB a second, if all are empty."""
    source = request.source
    size = len(source.data) if isinstance(source, EncodedImage) else 0
    size += len(source.text) if isinstance(source, SvgImage) else 0
    return (0.1 if request.is_quick else 1.0) + 0.1 * size / 1e6


def read_limit_s(work_pixels: int, request: DecodeRequest) -> float:
    """Seconds of CPU to read pixels: PNG, the slowest format, takes 0.06 a megapixel."""
    return (0.1 if request.is_quick else 1.0) + 0.15 * work_pixels / MEGAPIXEL


def work_limit_s(work_pixels: int, request: DecodeRequest) -> float:
    """Seconds of CPU to read pixels and for what is made of them: tracing a drawing takes 0.3, whatever its size."""
    return read_limit_s(work_pixels, request) + 1.0 + 0.15 * work_pixels / MEGAPIXEL


def pack_request(request: DecodeRequest) -> tuple[bytes, bytes]:
    """Return header and bytes; a file is not copied into the header."""
    source = request.source
    if isinstance(source, EncodedImage):
        return pickle.dumps(replace(request, source=EncodedImage(data=b""))), source.data
    return pickle.dumps(request), b""


def unpack_request(header: bytes, data: bytes) -> DecodeRequest:
    """Return the request that `pack_request` packed."""
    request: DecodeRequest = pickle.loads(header)  # of the server
    return replace(request, source=EncodedImage(data=data)) if isinstance(request.source, EncodedImage) else request


def pack_reply(reply: Reply) -> tuple[bytes, bytes]:
    """Return header and bytes."""
    head: dict[str, object]
    data = b""
    if isinstance(reply, Opened):
        head = {"opened": [reply.width, reply.height, reply.work_pixels]}
    elif isinstance(reply, ServiceError):
        head = {"error": reply.code, "detail": reply.detail}
    elif isinstance(reply, Failure):
        head = {"failure": reply.traceback}
    else:
        head = {"decode_s": reply.decode_s}
        value = reply.value
        if isinstance(value, bytes):
            data = value
        elif isinstance(value, DecodedImage):
            head |= {"height": value.height, "width": value.width, "key": value.key, "is_sketch": value.is_sketch}
            data = value.square.tobytes() + value.data
        else:
            boxes = [[box.top, box.left, box.side, box.is_whole] for box in value.boxes]
            head |= {"height": value.height, "width": value.width, "keys": list(value.keys), "boxes": boxes}
            data = b"".join(square.tobytes() for square in value.squares)
    return json.dumps(head).encode(), data


def unpack_reply(header: bytes, data: bytes, size: int) -> Reply:
    """Return the reply that `pack_reply` packed, with squares of `size` px. Raises ValueError if it is none."""
    try:
        head = json.loads(header)
        if "opened" in head:
            width, height, work_pixels = map(int, head["opened"])
            return Opened(width=width, height=height, work_pixels=work_pixels)
        if "error" in head:
            return _ERRORS[head["error"]](str(head["detail"]))
        if "failure" in head:
            return Failure(traceback=str(head["failure"]))
        return Answer(value=_value(head, data, size), decode_s=float(head["decode_s"]))
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError("a decoder process sent no reply") from err


def _value(head: dict[str, object], data: bytes, size: int) -> DecodedImage | TiledImage | bytes:
    if "height" not in head:
        return data
    height, width = int(str(head["height"])), int(str(head["width"]))
    if "key" in head:
        (square,), rest = _squares(data, 1, size)
        return DecodedImage(
            square=square,
            key=str(head["key"]),
            is_sketch=bool(head["is_sketch"]),
            height=height,
            width=width,
            data=rest,
        )
    keys, boxes = head["keys"], head["boxes"]
    if not isinstance(keys, list) or not isinstance(boxes, list):
        raise TypeError("keys and boxes are lists")
    views = [ViewBox(top=top, left=left, side=side, is_whole=is_whole) for top, left, side, is_whole in boxes]
    squares, _ = _squares(data, len(keys), size)
    return TiledImage(height=height, width=width, boxes=tuple(views), squares=squares, keys=keys)


def _squares(data: bytes, count: int, size: int) -> tuple[Sequence[NDArray[np.uint8]], bytes]:
    length = count * size * size * 3
    squares = np.frombuffer(data[:length], np.uint8).reshape(count, size, size, 3)
    # Of their own memory each: the cache may drop one and not the others.
    return [square.copy() for square in squares], data[length:]


class DecoderProcess:
    """A decoder process and the socket to it."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.pid = pid
        self._connection = connection

    @property
    def is_alive(self) -> bool:
        """Whether it waits for a request."""
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # its end, or a message that nobody asked for

    async def send(self, request: DecodeRequest) -> None:
        """Send a request. Raises OSError if it is gone, TimeoutError if it does not read."""
        header, data = pack_request(request)
        async with asyncio.timeout(START_TIMEOUT_S):
            await self._write(FRAME.pack(len(header), len(data)) + header)
            await self._write(data)

    async def tell(self, answer: bytes) -> None:
        """Send yes or no to its question."""
        await self._write(answer)

    async def receive(self, request: DecodeRequest, limit_s: float) -> Reply:
        """Return its reply to a request, which may take `limit_s` of CPU.

        Raises:
            EOFError, OSError, ValueError: it ended, or sent something else.
            TimeoutError: it takes too long.
        """
        async with asyncio.timeout(_WALL_SPARE_S + _WALL_FACTOR * limit_s):
            lengths = FRAME.unpack(await self._read(FRAME.size))
            if sum(lengths) > MAX_REPLY_BYTES:
                raise ValueError("a decoder process sent too much")
            header = await self._read(lengths[0])
            return unpack_reply(header, await self._read(lengths[1]), request.size)

    def close(self) -> None:
        """Close the socket, which ends an idle process."""
        self._connection.close()

    async def _write(self, data: bytes) -> None:
        if data:
            await asyncio.get_running_loop().sock_sendall(self._connection, data)

    async def _read(self, length: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray(length)
        rest = memoryview(data)
        while rest:
            received = await loop.sock_recv_into(self._connection, rest)
            if not received:
                raise EOFError("a decoder process ended")
            rest = rest[received:]
        return bytes(data)
