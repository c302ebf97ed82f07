"""Who may enter: cost is bounded, deadlines that cannot be met are refused, and refusals say when to come back."""

from collections.abc import Callable
from types import TracebackType

from app.engine.entries import TEXT_COST, VIEW_COST
from app.engine.rates import DrainRate
from app.errors import DeadlineExceeded, QueueFull
from app.runtime.telemetry import Telemetry

MAX_RETRY_AFTER_S = 60.0


class Admission:
    """Bounds the cost of what is promised to callers and not yet with the device.

    Attributes:
        reserved: cost promised to requests whose samples are still being decoded.
        rate: fed by the pipeline.

    Args:
        max_cost: of what waits; a request over it is admitted only when nothing waits.
        queued: cost that waits for the device now.
        in_flight: cost with the device now, less what is done of it.
        released: called when something is promised no longer.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        *,
        max_cost: int,
        queued: Callable[[], int],
        in_flight: Callable[[], float],
        released: Callable[[], None],
    ) -> None:
        self.reserved = 0
        self.rate = DrainRate()
        self._telemetry = telemetry
        self._max_cost = max_cost
        self._queued = queued
        self._in_flight = in_flight
        self._released = released

    def waiting(self) -> int:
        """Cost in the queue or promised a place in it."""
        return self._queued() + self.reserved

    def wait_s(self, cost: float = 0.0) -> float | None:
        """Until this much more would be done, counting what runs and what waits; None before any measurement."""
        return self.rate.seconds_for(self.waiting() + self._in_flight() + cost)

    def check(self, cost: int, timeout_s: float | None) -> None:
        """Let this much more in, or refuse it.

        Raises:
            QueueFull: over the bound; `retry_after_s` is when all that waits and runs now will be done.
            DeadlineExceeded: it would not be done in time.
        """
        if cost <= 0:
            return
        waiting = self.waiting()
        if waiting and waiting + cost > self._max_cost:
            self._telemetry.requests_rejected.labels("queue_full").inc()
            raise QueueFull("The queue for the device is full.", retry_after_s=self._retry_after_s(self.wait_s()))
        wait_s = self.wait_s(cost)
        if waiting and timeout_s is not None and wait_s is not None and wait_s > timeout_s:
            self._telemetry.requests_rejected.labels("deadline").inc()
            raise DeadlineExceeded(
                "The queue is longer than the deadline.", retry_after_s=self._retry_after_s(self.wait_s())
            )

    def release(self, cost: int) -> None:
        """Promise no longer: the samples are there, or never will be."""
        self.reserved -= cost
        self._released()

    def _retry_after_s(self, wait_s: float | None) -> float:
        return min(MAX_RETRY_AFTER_S, max(1.0, wait_s or 1.0))


class CostReservation:
    """Room for one request's samples, held from its arrival; implements `domain.Place`."""

    def __init__(self, admission: Admission, cost: int, timeout_s: float | None) -> None:
        self._admission = admission
        self._left = 0
        self._timeout_s = timeout_s
        self._claim(cost)

    def __enter__(self) -> "CostReservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._admission.release(self._left)
        self._left = 0

    def grow(self, *, views: int = 0, texts: int = 0) -> None:
        """Ask for more, once it is known. Raises as `Admission.check`."""
        self._claim(views * VIEW_COST + texts * TEXT_COST)

    def use(self, cost: int) -> int:
        """Turn promised cost into samples; what was not promised is returned, and must be admitted."""
        used = min(cost, self._left)
        self._left -= used
        self._admission.release(used)
        return cost - used

    def _claim(self, cost: int) -> None:
        self._admission.check(cost, self._timeout_s)
        self._left += cost
        self._admission.reserved += cost
