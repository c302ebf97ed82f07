"""When a call is sent again: not when that could do anything twice, and not before the service asks for it."""

import random
import time
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar

import httpx

from vermouth_client.calls import Call
from vermouth_client.errors import NoAnswer, error_of, problem_of

T = TypeVar("T")
Outcome = httpx.Response | httpx.RequestError
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_MISTAKES = (httpx.LocalProtocolError, httpx.TooManyRedirects, httpx.UnsupportedProtocol)  # the next attempt's too
_CODES = {413: "body-too-large", 429: "queue-full"}  # of what a proxy refuses as the service does
_LOST = (502, 503, 504)  # a proxy does not say whether the request came through
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0  # where the service asks for none; doubled each time


class Attempts(Generic[T]):
    """The attempts at one call within a budget of time, and its result.

    Args:
        budget_s: from now until the last attempt begins.
    """

    def __init__(self, call: Call[T], budget_s: float) -> None:
        self._call = call
        self._until_s = time.monotonic() + budget_s
        self._wait_s = _FIRST_WAIT_S
        self._may_be_done = False  # an attempt reached the service, perhaps, and its answer was lost

    def wait_s(self, outcome: Outcome) -> float | None:
        """Seconds until the next attempt; None where this outcome is the last."""
        asked_s = 0.0
        if isinstance(outcome, _MISTAKES):
            return None
        if isinstance(outcome, httpx.Response):
            if not self._is_refusal(outcome):
                return None
            asked_s = retry_after_s(outcome) or 0.0
        elif not isinstance(outcome, _UNSENT):
            self._may_be_done = True
            if not self._call.is_repeatable:
                return None
        # Jitter goes on top: earlier than asked is refused again.
        wait_s = asked_s + random.uniform(0.5, 1.0) * min(self._wait_s, asked_s or self._wait_s)
        self._wait_s = min(_LONGEST_WAIT_S, 2 * self._wait_s)
        return wait_s if time.monotonic() + wait_s < self._until_s else None

    def result(self, outcome: Outcome) -> T:
        """What the last outcome means. Raises VermouthError."""
        may_be_done = self._may_be_done and self._call.is_write
        if not isinstance(outcome, httpx.Response):
            origin = outcome.request.url.copy_with(path="/", query=None)
            detail = f"The service at {origin} did not answer: {str(outcome) or type(outcome).__name__}."
            raise NoAnswer(detail, may_be_done=may_be_done) from outcome
        problem, status = problem_of(outcome), outcome.status_code
        was_deleted = self._call.method == "DELETE" and may_be_done and problem is not None and status == 404
        if outcome.is_success or was_deleted:  # the attempt whose answer was lost deleted it
            try:
                return self._call.parse(outcome)
            except (KeyError, ValueError) as err:
                raise NoAnswer(
                    f"{outcome.url} did not answer as the service does.", may_be_done=self._call.is_write
                ) from err
        if problem is None:
            detail = f"{outcome.url} answered {status} and is not the service, or a proxy before it answered."
            if status in _LOST:
                raise NoAnswer(detail, may_be_done=may_be_done)
            problem = {"status": status, "code": _CODES.get(status), "detail": detail}
        raise error_of(problem, retry_after_s=retry_after_s(outcome))

    def _is_refusal(self, response: httpx.Response) -> bool:
        """Whether the service, or a proxy before it, refused the call for now."""
        status, has_wait = response.status_code, "Retry-After" in response.headers
        if status == 409:  # the first attempt with this idempotency key still runs
            return has_wait and "Idempotency-Key" in self._call.headers
        if status in _LOST and problem_of(response) is None:
            self._may_be_done = True
            return self._call.is_repeatable
        return status in (429, 503) or (status == 504 and has_wait)  # the queue was longer than the deadline


def retry_after_s(response: httpx.Response) -> float | None:
    """The wait that `Retry-After` asks for, in seconds or as a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
