"""Processes that decode side by side: in threads they would take turns for the interpreter (docs/adr/0027)."""

import contextlib
import os
import queue
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.decode_worker import Job, Look
from app.domain import Picture
from app.errors import UndecodableImage
from app.limits import Limits
from app.telemetry import Telemetry, get_logger

_ROOT = Path(__file__).parents[1]
_CODE = "from app.decode_worker import main; main()"
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
        """Of the processes as they are now."""
        return [process.pid for process in self._all]

    def look(self, data: bytes, size: int, *, wants_sketch: bool) -> Look:
        """What there is to see in a file, see `decode_worker.Look`.

        Raises:
            UndecodableImage: also where it ends the process that decodes it.
            UnsupportedMedia, ImageTooLarge.
        """
        job = Job(data=data, limits=self._limits, size=size, wants_sketch=wants_sketch)
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
        super().__init__()
        self._data = data
        self._read_here = read
        self._decoders = decoders
        self._size: tuple[int, int] | None = None

    @property
    def height(self) -> int:
        """Of the oriented picture, px."""
        return super().height if self._size is None else self._size[0]

    @property
    def width(self) -> int:
        """Of the oriented picture, px."""
        return super().width if self._size is None else self._size[1]

    def _read(self) -> NDArray[np.uint8]:
        return self._read_here()

    def _make_square(self, size: int) -> NDArray[np.uint8]:
        return self._look(size, wants_sketch=False).form

    def _make_sketch(self, size: int) -> NDArray[np.uint8] | None:
        found = self._look(size, wants_sketch=True)
        if found.is_sketch:
            return found.form
        self.squares[size] = found.form
        return None

    def _look(self, size: int, *, wants_sketch: bool) -> Look:
        found = self._decoders.look(self._data, size, wants_sketch=wants_sketch)
        self._size = found.height, found.width
        return found


class _Process:
    """A child and the socket to it."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def ask(self, job: Job) -> Look | Exception:
        """Its answer; a second one is asked where the first dies, which may have had nothing to do with the file."""
        for attempt in (1, 2):
            try:
                self._socket.send(job)
                if self._socket.poll(self._patience_s):
                    answer: Look | Exception = self._socket.recv()
                    return answer
            except (EOFError, OSError):
                pass
            is_hung = self._child.poll() is None
            self.stop()
            get_logger().error("decoder_ended", exit_code=self._child.returncode, hung=is_hung, attempt=attempt)
            self._start()
            if is_hung:
                break
        return UndecodableImage("The image ends the process that decodes it.")

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # What is imported is what the parent runs, whatever folder it was started in.
            path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._socket = Connection(ours.detach())
