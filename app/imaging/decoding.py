"""Processes that decode side by side: in threads they would take turns for the interpreter (docs/adr/0027)."""

import contextlib
import math
import os
import queue
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.domain import Limits, Picture
from app.errors import EngineUnavailable, UndecodableImage
from app.imaging.worker import READY, Job, Look
from app.runtime.telemetry import Telemetry, get_logger

_ROOT = Path(__file__).parents[2]
# A Ctrl-C while it imports is not meant for it either.
_CODE = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from app.imaging.worker import main; main()"
RETRY_AFTER_S = 5.0
PATIENCE_S = 60.0
"""No picture within the limits takes a tenth of it; a decoder that does is hung, and is ended."""


class Decoders:
    """So many processes, each with one file at a time; one that dies is started anew.

    Called from as many threads as there are processes.
    """

    def __init__(self, count: int, *, limits: Limits, telemetry: Telemetry, patience_s: float = PATIENCE_S) -> None:
        self._limits = limits
        self._telemetry = telemetry
        self._all = [_Process(patience_s) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self._all:
            self._idle.put(process)

    @property
    def pids(self) -> list[int]:
        """Of the processes that run now."""
        return [pid for process in self._all if (pid := process.pid) is not None]

    def start(self) -> None:
        """Start them all, so that the first pictures do not wait for it."""
        for process in self._all:
            # One that cannot start now may when it is needed; if not, that is said then.
            with contextlib.suppress(OSError):
                process.start()

    def look(self, data: bytes, size: int) -> Look:
        """What there is to see in a file, see `decode_worker.Look`.

        Raises:
            UndecodableImage: also where it ends the process that decodes it.
            UnsupportedMedia, ImageTooLarge.
            EngineUnavailable: no process starts.
        """
        job = Job(data=data, limits=self._limits, size=size)
        process = self._idle.get()
        try:
            answer = process.ask(job)
        finally:
            self._idle.put(process)
        if isinstance(answer, Exception):
            raise answer
        self._telemetry.decode.observe(answer.decode_s)
        return answer

    def stop(self) -> None:
        """End all of them."""
        for process in self._all:
            process.stop()


class FarPicture(Picture):
    """A file that another process looks at; its pixels are decoded here only where a task needs them all."""

    def __init__(self, data: bytes, read: Callable[[], NDArray[np.uint8]], decoders: Decoders) -> None:
        super().__init__(read)
        self._data = data
        self._decoders = decoders

    def _make_sketch(self, size: int) -> NDArray[np.uint8] | None:
        if self._pixels is not None:
            return super()._make_sketch(size)
        found = self._decoders.look(self._data, size)
        self._size = found.height, found.width
        if found.is_sketch:
            return found.form
        self.squares[size] = found.form
        return None


class _Process:
    """A child and the socket to it; started when it is first needed."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: Connection | None = None
        self._is_ready = False

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def ask(self, job: Job) -> Look | Exception:
        """Its answer; a second one is asked where the first dies, which may have had nothing to do with the file."""
        for attempt in (1, 2):
            connection = self._ready()
            is_hung = False
            try:
                connection.send(job)
                if connection.poll(self._patience_s):
                    answer: Look | Exception = connection.recv()
                    return answer
                is_hung = True
            except BlockingIOError:
                is_hung = True
            except (EOFError, OSError):
                pass
            self.stop()
            get_logger().error("decoder_ended", hung=is_hung, attempt=attempt)
            if is_hung:
                break
        return UndecodableImage("The image ends the process that decodes it.")

    def start(self) -> None:
        """Start it, if it is not. Raises OSError where the system has no room for it."""
        if self._child is not None:
            return
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                # Half a message must not be waited for for ever either.
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", math.ceil(PATIENCE_S), 0))
            # What is imported is what the parent runs, whatever folder it was started in.
            path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            self._socket = Connection(ours.detach())

    def stop(self) -> None:
        """End it; it may be started again."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        if self._child is not None:
            if self._child.poll() is None:
                self._child.kill()
            self._child.wait()
        self._child, self._socket, self._is_ready = None, None, False

    def _ready(self) -> Connection:
        """The socket to a child that has said that it is ready.

        Raises:
            EngineUnavailable: there is none, for no fault of any file.
        """
        try:
            self.start()
            connection = self._socket
            if connection is None or not (self._is_ready or connection.poll(PATIENCE_S)):
                raise TimeoutError("a decoder does not start")
            if not self._is_ready:
                self._is_ready = connection.recv() == READY
        except (EOFError, OSError) as err:
            self.stop()
            get_logger().error("decoder_not_started", exc_info=err)
            raise EngineUnavailable("No image can be decoded now.", retry_after_s=RETRY_AFTER_S) from err
        return connection
