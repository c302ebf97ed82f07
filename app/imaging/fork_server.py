"""The server's side of the process that forks decoder processes."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from app.domain import MIB, Limits
from app.imaging.messages import ORDER, READY, START_TIMEOUT_S

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
                    pid = self._order(0, theirs)
                except OSError:  # it may have been killed: the next one serves
                    pid = self._order(0, theirs)
            if pid <= 0:
                raise OSError("no process can be forked")
            return pid, ours
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
        try:
            control = self._control or self._start()
            socket.send_fds(control, [ORDER.pack(order)], [] if passed is None else [passed.fileno()])
            return _integer(control)
        except OSError:
            self._stop()  # a late answer would be taken for that of the next order
            raise

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
