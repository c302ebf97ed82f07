"""Names of all metrics, and the logger."""

from functools import partial

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# From a cached answer to the default deadline.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Telemetry:
    """The metrics of one app, in its own registry: two apps in a process, as in tests, do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        seconds = partial(histogram, buckets=_SECONDS)
        self.http_requests = counter("http_requests", "Requests answered.", ("method", "route", "status"))
        self.http_request_duration = seconds(
            "http_request_duration_seconds", "From a request's first byte to its response's last.", ("method", "route")
        )
        self.queue_depth = gauge("vermouth_queue_depth", "Cost waiting for the device.")
        self.queue_wait = seconds("vermouth_queue_wait_seconds", "Wait of a request for the device.")
        self.batch_size = histogram("vermouth_batch_size", "Samples in a batch.", ("kind",), buckets=_SIZES)
        self.batch_cost_ratio = histogram(
            "vermouth_batch_cost_ratio",
            "Cost of a batch over the largest allowed.",
            buckets=(0.125, 0.25, 0.5, 0.75, 1.0),
        )
        self.batch_execution = seconds("vermouth_batch_execution_seconds", "Time on the device.", ("kind",))
        self.decode = seconds("vermouth_decode_seconds", "Decoding of an image.")
        self.requests_rejected = counter(
            "vermouth_requests_rejected", "Requests refused before the device.", ("reason",)
        )
        self.batch_failures = counter("vermouth_batch_failures", "Failed batches.", ("kind",))
        self.cache_lookups = counter("vermouth_feature_cache_lookups", "Cache lookups.", ("outcome",))
        self.cache_bytes = gauge("vermouth_feature_cache_bytes", "Bytes held by the feature cache.")
        self.live_connections = gauge("vermouth_live_connections", "Open connections that search while drawing.")
        self.image_cache_bytes = gauge("vermouth_picture_cache_bytes", "Bytes held by the image cache.")
        self.device_memory = gauge(
            "vermouth_device_memory_bytes", "Memory in use, of the process and of the accelerator.", ("kind",)
        )
        self.bundle_info = gauge("vermouth_bundle_info", "Always 1.", ("name", "fingerprint"))
        self.index_vectors = gauge("vermouth_index_vectors", "Searchable vectors.", ("gallery",))
        self.index_left_out = gauge(
            "vermouth_index_left_out", "Items that no search finds, as their vectors are damaged or missing."
        )
        self.index_applied_seq = gauge("vermouth_index_applied_seq", "Last write that the indexes contain.")
        self.index_lag = gauge("vermouth_index_lag", "Writes in the change log that the indexes lack.")
        self.is_ready = gauge("vermouth_ready", "1 while the service is ready.")

    def exposition(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)


def get_logger() -> structlog.stdlib.BoundLogger:
    """The service's logger; its lines carry the request id that the middleware binds."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("vermouth")
    return logger


def bind_request(request_id: str, trace_id: str | None = None) -> None:
    """Add the request id, and the trace that the request is part of, to every log line of the current task."""
    structlog.contextvars.clear_contextvars()
    traced = {} if trace_id is None else {"trace_id": trace_id}
    structlog.contextvars.bind_contextvars(request_id=request_id, **traced)
