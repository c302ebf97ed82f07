"""Structured logs on stderr, written by a thread of their own so that no request waits for a slow reader."""

import contextlib
import logging
import logging.handlers
import queue
import sys
import threading
from collections.abc import Iterator

import structlog

from app.runtime.telemetry import get_logger

MAX_QUEUED_LINES = 10_000
"""Log lines that wait while the reader stalls; further ones are dropped and counted."""
FLUSH_S = 2.0
"""How long a stopping process waits for its last lines to be written."""


def configure_logging(*, level: str, as_json: bool) -> None:
    """Send structured logs to stderr, those of uvicorn and libraries included.

    Args:
        level: a name such as `info`; libraries log warnings and errors only.
        as_json: one JSON object a line; else colored text.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    wanted = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger("vermouth").setLevel(wanted)
    # At debug, uvicorn logs the headers of WebSocket handshakes, and with them API keys.
    logging.getLogger("uvicorn.error").setLevel(max(wanted, logging.INFO))


@contextlib.contextmanager
def logs_in_background() -> Iterator[None]:
    """Make the root logger's only handler write from a thread: a full pipe blocks no request."""
    root = logging.getLogger()
    (writer,) = root.handlers
    formatter = writer.formatter
    lines: queue.Queue[logging.LogRecord | None] = queue.Queue(MAX_QUEUED_LINES)
    front = _QueueHandler(lines)
    front.setFormatter(formatter)

    def write() -> None:
        while (record := lines.get()) is not None:
            writer.handle(record)
            lost, front.lost = front.lost, 0
            if lost:
                get_logger().warning("log_lines_lost", count=lost)

    thread = threading.Thread(target=write, name="log-writer", daemon=True)
    writer.setFormatter(None)  # the queue's handler has formatted the record already
    root.handlers[:] = [front]
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(queue.Full):
            lines.put(None, timeout=FLUSH_S)
        thread.join(FLUSH_S)
        # A writer that hangs on its pipe keeps the handler: using it here would hang too.
        if not thread.is_alive():
            writer.setFormatter(formatter)
            root.handlers[:] = [writer]


class _QueueHandler(logging.handlers.QueueHandler):
    """Formats a record in the logging thread, and never blocks."""

    def __init__(self, lines: queue.Queue[logging.LogRecord | None]) -> None:
        super().__init__(lines)
        self.lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.lost += 1
