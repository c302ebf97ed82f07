"""The real server process over a fake device, that ends itself with SIGKILL at a chosen point of its writes.

`KILL_AT=point:count`: the process is killed when `point` is reached for the `count`-th time; `random:seed`
kills at a random passage of any point.
"""

import os
import random
import signal
import sys
import threading

from app.server import serve
from app.settings import Settings
from app.stores.sql.database import failpoint_listeners
from tests.app.server_process import build_services

KILL = "KILL_AT"


class Killer:
    """Counts passages and ends the process at the chosen one."""

    def __init__(self, point: str, count: int) -> None:
        self._point = point
        self._left = count
        self._lock = threading.Lock()

    def __call__(self, point: str) -> None:
        with self._lock:
            if self._point in (point, "any"):
                self._left -= 1
                if self._left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    chosen = os.environ.get(KILL, "")
    if chosen:
        point, _, number = chosen.partition(":")
        count = int(number)
        if point == "random":
            point, count = "any", random.Random(count).randrange(1, 240)
        failpoint_listeners.append(Killer(point, count))
    return serve(Settings(), build_services)


if __name__ == "__main__":
    sys.exit(main())
