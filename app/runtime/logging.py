"""Logs that nobody waits for: lines go through a bounded queue to a thread that writes them."""

import contextlib
import logging
import logging.handlers
import queue
import threading
from collections.abc import Iterator

from app.runtime.telemetry import get_logger

LINES = 10_000
"""Lines that wait for a log whose reader stalls; further ones are dropped and counted."""
FLUSH_S = 2.0
"""How long the end waits for a log that is not read."""


class _QueueHandler(logging.handlers.QueueHandler):
    """Formats a record where it is logged, and never blocks."""

    def __init__(self, lines: queue.Queue[logging.LogRecord | None]) -> None:
        super().__init__(lines)
        self.lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.lost += 1


@contextlib.contextmanager
def logs_in_background() -> Iterator[None]:
    """While it lasts, the root logger's one handler writes from a thread: a full pipe stops no request."""
    root = logging.getLogger()
    (writer,) = root.handlers
    formatter = writer.formatter
    lines: queue.Queue[logging.LogRecord | None] = queue.Queue(LINES)
    front = _QueueHandler(lines)
    front.setFormatter(formatter)

    def write() -> None:
        while (record := lines.get()) is not None:
            writer.handle(record)
            lost, front.lost = front.lost, 0
            if lost:
                get_logger().warning("log_lines_lost", count=lost)

    thread = threading.Thread(target=write, name="log-writer", daemon=True)
    writer.setFormatter(None)
    root.handlers[:] = [front]
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(queue.Full):
            lines.put(None, timeout=FLUSH_S)
        thread.join(FLUSH_S)
        if not thread.is_alive():
            writer.setFormatter(formatter)
            root.handlers[:] = [writer]
