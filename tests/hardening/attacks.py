"""Attacks on a server of this machine, each by ten clients: `python -m tests.hardening.attacks NAME PORT SECONDS`.

Each is bounded in memory (a request is built once or streamed, an answer is dropped) and in time. A client repeats its
request a moment after the answer; one that holds a connection opens another when the server closes it.
"""

import asyncio
import base64
import contextlib
import io
import json
import os
import random
import resource
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence

from PIL import Image

ATTACKERS = 10
PAUSE_S = 0.1
HEADER_BYTES = 64 << 20
ANSWER_LIMIT_S = 60.0
HOST = "127.0.0.1"
LARGE_GALLERY, LARGE_IMAGE = "large", "/galleries/default/items/large/image"

Attack = Callable[[int], Coroutine[None, None, None]]


def post(path: str, body: bytes, kind: str = "application/json") -> bytes:
    """Return a POST as bytes; the connection closes after the answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(path: str, *headers: str) -> bytes:
    """Return a GET as bytes; the connection closes after the answer."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode()


def drawing(chance: random.Random) -> dict[str, object]:
    """Return a small drawing that no cache knows."""
    strokes = [[[chance.randrange(256) for _ in range(4)] for _ in "xy"] for _ in range(3)]
    return {"strokes": strokes, "width": 256, "height": 256}


def retrieve_svg(svg: str) -> bytes:
    """Return a search by an SVG."""
    return post("/retrieve", json.dumps({"sketch": {"svg": svg}}).encode())


def repeated_scans(side: int = 8000, times: int = 3000) -> bytes:
    """Return a progressive JPEG whose last scan comes so many times."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (90, 140, 200)).save(out, "JPEG", progressive=True)  # flat: its scans are short
    data = out.getvalue()
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[start:end] * (times - 1) + data[end:]


def segment_scans() -> bytes:
    """Return a segmentation of such a JPEG."""
    image = {"base64": base64.b64encode(repeated_scans()).decode()}
    return post("/segment", json.dumps({"image": image, "classes": ["cat"]}).encode())


def embed_images(chance: random.Random) -> bytes:
    """Return an embedding of a thousand new drawings."""
    return post("/embed", json.dumps({"images": [drawing(chance) for _ in range(1000)]}).encode())


def embed_texts(chance: random.Random) -> bytes:
    """Return an embedding of 2,048 new strings of the longest length."""
    texts = [f"{chance.random()} " + "fish " * 390 for _ in range(2048)]
    return post("/embed", json.dumps({"texts": texts}).encode())


def strokes_list(_: random.Random) -> bytes:
    """Return 16 MB of empty strokes."""
    return post("/retrieve", b'{"sketch":{"strokes":[' + b"[]," * 5_300_000 + b'[]],"width":9,"height":9}}')


def items_list(_: random.Random) -> bytes:
    """Return 16 MB of empty items."""
    return post("/galleries/default/items", b"[" + b"{}," * 5_300_000 + b"{}]")


def asking(make: Callable[[random.Random], bytes], *, connections: int = 1, is_new: bool = False) -> Attack:
    """Return an attack that sends a request, built once unless `is_new`, and waits for its answer, again and again."""

    async def repeat(port: int) -> None:
        chance = random.Random()
        request = make(chance)
        await asyncio.sleep(chance.uniform(0, pause_s))
        while True:
            await _asked(port, request)
            request = make(chance) if is_new else request
            await asyncio.sleep(pause_s)

    async def attack(port: int) -> None:
        await asyncio.gather(*(repeat(port) for _ in range(connections)))

    pause_s = PAUSE_S * connections  # or many connections would be a flood of requests
    return attack


async def _asked(port: int, request: bytes) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(ANSWER_LIMIT_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(request)
                while await reader.read(1 << 16):
                    pass
            finally:
                writer.transport.abort()


def holding(request: bytes, *, connections: int, drip: bytes = b"") -> Attack:
    """Return an attack that holds connections on which it never reads, and sends `drip` every second."""

    async def attack(port: int) -> None:
        held: list[socket.socket] = []
        while True:
            for one in [one for one in held if not _is_open(one)]:
                held.remove(one)
                one.close()
            while len(held) < connections:
                with contextlib.suppress(OSError):
                    held.append(await _connected(port, request))
                await asyncio.sleep(0)
            for one in held:
                with contextlib.suppress(OSError):
                    one.send(drip)
            await asyncio.sleep(1.0)

    return attack


async def _connected(port: int, request: bytes) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.setblocking(False)
    async with asyncio.timeout(5):
        await asyncio.get_running_loop().sock_connect(one, (HOST, port))
    one.send(request)
    return one


def _is_open(one: socket.socket) -> bool:
    # Linux: the first byte of TCP_INFO is the state, 1 for an established connection.
    return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01"


def streaming_headers(piece: bytes) -> Attack:
    """Return an attack that sends 64 MB of headers made of the piece."""

    async def attack(port: int) -> None:
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    _, writer = await asyncio.open_connection(HOST, port)
                    try:
                        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
                        for _ in range(HEADER_BYTES // len(piece)):
                            writer.write(piece)
                            await writer.drain()
                    finally:
                        writer.transport.abort()
            await asyncio.sleep(PAUSE_S)

    return attack


ABORT = (
    '<svg width="256" height="64"><g stroke-miterlimit="-229" style="stroke-width:1e38;stroke:red">'
    '<ellipse cx="24.2" ry="47.6"/></g></svg>'
)
FREEZE = '<svg width="64" height="100"><path d="M0 0A1 1e38 0 1 0 9 9"/></svg>'
NESTED = (
    f'<svg width="4096" height="4096">{"".join(["<g opacity=%s.5%s>" % (2 * (chr(34),))] * 40)}'
    f'<rect width="4096" height="4096"/>{"</g>" * 40}</svg>'
)
SEQ = "X-Min-Seq: 999999999"
ATTACKS: Mapping[str, Attack] = {
    "svg-abort": asking(lambda _: retrieve_svg(ABORT)),
    "svg-freeze": asking(lambda _: retrieve_svg(FREEZE)),
    "nested-opacity": asking(lambda _: retrieve_svg(NESTED)),
    "jpeg-scans": asking(lambda _: segment_scans()),
    "strokes-list": asking(strokes_list),
    "items-list": asking(items_list),
    "large-pages": asking(lambda _: get(f"/galleries/{LARGE_GALLERY}/items?limit=1000")),
    "many-headers": streaming_headers((b"X-%s: 1\r\n" % (b"a" * 100)) * 600),
    "one-header": streaming_headers(b"a" * 65536),
    "silent-connections": holding(b"", connections=101),
    "slow-bodies": holding(
        b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n", connections=13, drip=b" "
    ),
    "unread-exports": holding(get(f"/galleries/{LARGE_GALLERY}/export"), connections=13),
    "unread-images": holding(get(LARGE_IMAGE), connections=6),
    "min-seq": asking(lambda _: get("/galleries/default/items", SEQ), connections=13),
    "embed-images": asking(embed_images, is_new=True),
    "embed-texts": asking(embed_texts, is_new=True),
}


async def _run(attack: Attack, port: int, seconds: float) -> None:
    attackers = [asyncio.create_task(attack(port)) for _ in range(ATTACKERS)]
    await asyncio.wait(attackers, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for one in attackers:
        if one.done():
            one.result()  # an attacker only ends by an error of its own
        one.cancel()
    await asyncio.gather(*attackers, return_exceptions=True)


def main(arguments: Sequence[str]) -> None:
    """Run one attack."""
    os.nice(10)  # the attackers must not take the cores from the server on one machine with it
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    name, port, seconds = arguments
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    asyncio.run(_run(ATTACKS[name], int(port), float(seconds)))


if __name__ == "__main__":
    main(sys.argv[1:])
