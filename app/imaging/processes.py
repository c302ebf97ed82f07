"""Decoder processes, both ends of the socket: threads would take turns for the interpreter (docs/adr/0027).

A decoder process imports this module too. It imports neither torch nor the web, so that it is small and starts fast.
"""

import contextlib
import math
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from app.domain import Limits
from app.errors import EngineUnavailable, ServiceError, UndecodableImage
from app.imaging.raster import DecodedImage, decode_image, open_file
from app.runtime.process import DECODER_NICENESS, be_nice

RETRY_AFTER_S = 5.0
TIMEOUT_S = 60.0  # no image within the limits takes a tenth of it: a decoder that takes longer hangs, and is killed
_READY = "ready"
_ROOT = Path(__file__).parents[2]
# A Ctrl-C during the child's imports must not reach it either.
_CODE = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from app.imaging.processes import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRequest:
    """A file to decode for a square of `size` px."""

    data: bytes
    limits: Limits
    size: int


def main() -> None:
    """Run a decoder process: answer requests on the socket whose number is the argument, until the parent is gone."""
    # A terminal or a supervisor signals the whole group; the parent drains, and this process ends with its socket.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    be_nice(DECODER_NICENESS)
    # The parent being gone is no error here.
    with contextlib.suppress(EOFError, OSError), Connection(int(sys.argv[1])) as parent:
        parent.send(_READY)
        while True:
            parent.send(_answer(parent.recv()))


def _answer(request: DecodeRequest) -> DecodedImage | Exception:
    try:
        # The file stays in the parent: sending it back would take longer than the square.
        return decode_image(open_file(request.data, request.limits), request.size, b"")
    except ServiceError as err:
        return err
    except Exception:  # noqa: BLE001 - the parent raises it where it is logged
        return RuntimeError(traceback.format_exc())


class DecoderProcesses:
    """A fixed number of processes, each decoding one file at a time; one that dies is replaced.

    Call it from as many threads as there are processes.
    """

    def __init__(self, count: int, *, limits: Limits, timeout_s: float = TIMEOUT_S) -> None:
        self._limits = limits
        self._all = [_Process(timeout_s) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self._all:
            self._idle.put(process)

    @property
    def pids(self) -> list[int]:
        """Ids of the running processes."""
        return [child.pid for process in self._all if (child := process.child) is not None]

    def start(self) -> None:
        """Start all processes, so that the first images do not wait for that."""
        for process in self._all:
            # One that fails to start is tried again by `decode`, which reports the failure.
            with contextlib.suppress(OSError):
                process.start()

    def decode(self, data: bytes, size: int) -> DecodedImage:
        """Decode a file in an idle process.

        Raises:
            UndecodableImage, UnsupportedMedia, ImageTooLarge: the file; also one that kills or hangs its process.
            EngineUnavailable: no process starts.
        """
        process = self._idle.get()
        try:
            answer = process.ask(DecodeRequest(data=data, limits=self._limits, size=size))
        finally:
            self._idle.put(process)
        if isinstance(answer, Exception):
            raise answer
        return replace(answer, data=data)

    def stop(self) -> None:
        """Kill all processes."""
        for process in self._all:
            process.stop()


class _Process:
    """A child process and the socket to it; started on first use."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.child: subprocess.Popen[bytes] | None = None
        self._socket: Connection | None = None
        self._is_ready = False

    def ask(self, request: DecodeRequest) -> DecodedImage | Exception:
        for attempt in (1, 2):
            connection = self._connection()
            try:
                connection.send(request)
                if connection.poll(self._timeout_s):
                    answer: DecodedImage | Exception = connection.recv()
                    return answer
                is_hung = True
            except (EOFError, OSError) as err:
                is_hung = isinstance(err, BlockingIOError)  # half a message, then the socket's timeout
            self.stop()
            _log_error("decoder_ended", hung=is_hung, attempt=attempt)
            # A death may have other causes than the file; a hang is not worth a second timeout.
            if is_hung:
                break
        return UndecodableImage("The image ends the process that decodes it.")

    def start(self) -> None:
        if self.child is not None:
            return
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                # `poll` has a timeout of its own; this one is for a message that stops half way.
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", math.ceil(TIMEOUT_S), 0))
            # The child imports the code that the parent runs, whatever the working directory is.
            path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            self.child = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            self._socket = Connection(ours.detach())

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self.child is not None:
            self.child.kill()
            self.child.wait()
        self.child, self._socket, self._is_ready = None, None, False

    def _connection(self) -> Connection:
        try:
            self.start()
            connection = self._socket
            if connection is None or not (self._is_ready or connection.poll(TIMEOUT_S)):
                raise TimeoutError("a decoder process does not start")  # an OSError, handled below
            if not self._is_ready:
                self._is_ready = connection.recv() == _READY
        except (EOFError, OSError) as err:
            self.stop()
            _log_error("decoder_not_started", exc_info=err)
            raise EngineUnavailable("No image can be decoded now.", retry_after_s=RETRY_AFTER_S) from err
        return connection


def _log_error(event: str, **fields: object) -> None:
    # Imported here because it takes 0.2 s and 6 MiB, which no child needs.
    from app.runtime.telemetry import get_logger

    get_logger().error(event, **fields)
