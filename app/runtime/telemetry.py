"""Names of metrics and logs, in one place."""

import logging
import sys

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Telemetry:
    """The metrics of one app, in a registry of its own so that two apps in a process do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http_requests = self._counter("http_requests", "Requests answered.", ("method", "route", "status"))
        self.http_request_duration = self._histogram(
            "http_request_duration_seconds", "From first byte to last.", _SECONDS, ("method", "route")
        )
        self.queue_depth = self._gauge("vermouth_queue_depth", "Cost waiting for the device.")
        self.queue_wait = self._histogram("vermouth_queue_wait_seconds", "Wait for the device.", _SECONDS)
        self.batch_size = self._histogram("vermouth_batch_size", "Samples in a batch.", _SIZES, ("kind",))
        self.batch_cost_ratio = self._histogram(
            "vermouth_batch_cost_ratio", "Cost of a batch by the most it may hold.", (0.125, 0.25, 0.5, 0.75, 1.0)
        )
        self.batch_execution = self._histogram(
            "vermouth_batch_execution_seconds", "Time on the device.", _SECONDS, ("kind",)
        )
        self.decode = self._histogram("vermouth_decode_seconds", "Decoding of an image.", _SECONDS)
        self.requests_rejected = self._counter(
            "vermouth_requests_rejected", "Requests refused before the device.", ("reason",)
        )
        self.batch_failures = self._counter("vermouth_batch_failures", "Failed batches.", ("kind",))
        self.cache_lookups = self._counter("vermouth_feature_cache_lookups", "Cache lookups.", ("outcome",))
        self.cache_bytes = self._gauge("vermouth_feature_cache_bytes", "Bytes held by the feature cache.")
        self.live_connections = self._gauge("vermouth_live_connections", "Open connections that search while drawing.")
        self.picture_cache_bytes = self._gauge("vermouth_picture_cache_bytes", "Bytes held by the picture cache.")
        self.device_memory = self._gauge(
            "vermouth_device_memory_bytes", "Memory held: of the process, and of the accelerator.", ("kind",)
        )
        self.bundle_info = self._gauge("vermouth_bundle_info", "Always 1.", ("name", "fingerprint"))
        self.index_vectors = self._gauge("vermouth_index_vectors", "Searchable vectors.", ("gallery",))
        self.index_applied_seq = self._gauge("vermouth_index_applied_seq", "Last change the indexes hold.")
        self.index_lag = self._gauge("vermouth_index_lag", "Changes seen in the log and not in the indexes yet.")
        self.is_ready = self._gauge("vermouth_ready", "1 while the service is ready.")

    def exposition(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


def get_logger() -> structlog.stdlib.BoundLogger:
    """The one logger; the request id is bound to it by the middleware."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("vermouth")
    return logger


def bind_request(request_id: str) -> None:
    """Give every log line of this request its id."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)


def configure_logging(*, level: str, as_json: bool) -> None:
    """Send structured logs to stderr, those of uvicorn and libraries as well.

    Args:
        level: a name such as `info`.
        as_json: one JSON object a line; else lines for people.
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
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    wanted = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger("vermouth").setLevel(wanted)
    # At debug it tells the headers of WebSocket handshakes, and with them API keys.
    logging.getLogger("uvicorn.error").setLevel(max(wanted, logging.INFO))
