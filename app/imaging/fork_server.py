"""The server's side of the process that forks decoder processes, and of one of these."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from app.domain import MIB, Limits
from app.imaging.child import ORDER, READY
from app.imaging.messages import FRAME, DecodeRequest, Reply, pack_request, unpack_reply

_WALL_FACTOR, _WALL_SPARE_S = 3.0, 2.0  # of a CPU limit: a loaded machine gives a process a third of a core
MAX_REPLY_BYTES = 1 << 30
START_TIMEOUT_S = 60.0  # the imports take half a second
_BASE_BYTES, _BYTES_PER_PIXEL = 256 * MIB, 24  # an RGBA PNG takes 20 a pixel while it is laid on white
_ROOT = Path(__file__).parents[2]
# A Ctrl-C during the imports must not reach it either.
_CODE = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from app.imaging.child import main; main()"


class ForkServer:
    """A process that has imported everything and forks decoder processes in milliseconds; thread-safe, blocking."""

    def __init__(self, *, limits: Limits) -> None:
        self._memory_bytes = _BASE_BYTES + _BYTES_PER_PIXEL * max(limits.max_image_pixels, limits.max_canvas_side**2)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(self) -> tuple[int, socket.socket]:
        """Return the id of a new decoder process and a socket to it. Raises OSError if none starts."""
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                try:
                    return self._order(0, theirs), ours
                except OSError:
                    self._stop()  # it may have been killed: the next one serves
                    return self._order(0, theirs), ours
        except BaseException:
            ours.close()
            raise

    def end(self, pid: int) -> int:
        """Kill a decoder process and return its status, as `os.waitpid`; 0 if that is not known."""
        with self._lock, contextlib.suppress(OSError):
            return 0 if self._control is None else self._order(pid)
        return 0

    def stop(self) -> None:
        """End the process, and with it all that it forked."""
        with self._lock:
            self._stop()

    def _order(self, order: int, passed: socket.socket | None = None) -> int:
        control = self._control or self._start()
        socket.send_fds(control, [ORDER.pack(order)], [] if passed is None else [passed.fileno()])
        return _integer(control)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(START_TIMEOUT_S)
        with theirs:
            # The child imports the code that the server runs, whatever the working directory is.
            path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, str(theirs.fileno()), str(self._memory_bytes)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                # One thread: it forks.
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._control = ours
        if ORDER.pack(_integer(ours)) != READY:
            raise OSError("the fork server did not start")
        return ours

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process, self._control = None, None


def _integer(control: socket.socket) -> int:
    data = control.recv(ORDER.size)
    if len(data) < ORDER.size:
        raise OSError("the fork server ended")
    return int(ORDER.unpack(data)[0])


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
