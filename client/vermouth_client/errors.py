"""What can go wrong: one class for each code of the service's catalogue of errors, under the name it has there."""

from typing import Any, ClassVar

import httpx


class VermouthError(Exception):
    """Base of all errors of this package."""


class NoAnswer(VermouthError):
    """The service did not answer, or what answered is not the service.

    Attributes:
        may_be_done: whether the request may have reached the service, so that a write may be done.
    """

    def __init__(self, detail: str, *, may_be_done: bool = False) -> None:
        super().__init__(detail)
        self.may_be_done = may_be_done


class ServiceError(VermouthError):
    """A problem that the service reported (RFC 9457); of this class itself where its code is unknown here.

    Attributes:
        status: of HTTP.
        code: of the service's catalogue.
        detail: a sentence: what was wrong and what to do.
        errors: invalid fields, as dicts of `field` and `message`.
        request_id: by which the service's log has the request.
        retry_after_s: the wait that the service asked for.
    """

    code = "internal"
    of_code: ClassVar[dict[str, type["ServiceError"]]] = {}

    def __init_subclass__(cls, *, code: str) -> None:
        cls.code = code
        cls.of_code[code] = cls

    def __init__(self, problem: dict[str, Any], *, retry_after_s: float | None = None) -> None:
        self.status = int(problem.get("status") or 500)
        self.code = str(problem.get("code") or self.code)
        self.detail = str(problem.get("detail") or problem.get("title") or f"The service answered {self.status}.")
        self.errors: list[dict[str, str]] = problem.get("errors") or []
        self.request_id = str(problem.get("request_id") or "")
        self.retry_after_s = retry_after_s
        fields = "".join(f"\n  {one.get('field')}: {one.get('message')}" for one in self.errors)
        super().__init__(f"{self.detail} [{self.code}, request {self.request_id or 'unknown'}]{fields}")


class Malformed(ServiceError, code="malformed"): ...


class UndecodableImage(ServiceError, code="undecodable-image"): ...


class Unauthenticated(ServiceError, code="unauthenticated"): ...


class Forbidden(ServiceError, code="forbidden"): ...


class NotFound(ServiceError, code="not-found"): ...


class MethodNotAllowed(ServiceError, code="method-not-allowed"): ...


class NotAcceptable(ServiceError, code="not-acceptable"): ...


class TooSlow(ServiceError, code="request-timeout"): ...


class Conflict(ServiceError, code="conflict"): ...


class ResponseLost(ServiceError, code="response-lost"):
    """The write is done, but its response was lost: read what it wrote."""


class FingerprintMismatch(ServiceError, code="fingerprint-mismatch"): ...


class PreconditionFailed(ServiceError, code="precondition-failed"): ...


class BodyTooLarge(ServiceError, code="body-too-large"): ...


class ImageTooLarge(ServiceError, code="image-too-large"): ...


class TooMuchWork(ServiceError, code="too-much-work"): ...


class TargetTooLong(ServiceError, code="target-too-long"): ...


class UnsupportedMedia(ServiceError, code="unsupported-media"): ...


class UnsupportedCoding(ServiceError, code="unsupported-coding"): ...


class Invalid(ServiceError, code="invalid"): ...


class PreconditionRequired(ServiceError, code="precondition-required"): ...


class QueueFull(ServiceError, code="queue-full"): ...


class HeadersTooLarge(ServiceError, code="headers-too-large"): ...


class InferenceFailed(ServiceError, code="inference-failed"): ...


class Damaged(ServiceError, code="damaged"): ...


class NotImplementedInHttp(ServiceError, code="not-implemented"): ...


class EngineUnavailable(ServiceError, code="unavailable"): ...


class DeadlineExceeded(ServiceError, code="deadline-exceeded"): ...


class VersionNotSupported(ServiceError, code="version-not-supported"): ...


class DiskFull(ServiceError, code="disk-full"): ...


def error_of(problem: dict[str, Any], *, retry_after_s: float | None = None) -> ServiceError:
    """The error that a problem document describes."""
    return ServiceError.of_code.get(str(problem.get("code")), ServiceError)(problem, retry_after_s=retry_after_s)


def problem_of(response: httpx.Response) -> dict[str, Any] | None:
    """The problem document of a response; None where it has none, as a proxy's own page."""
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return None
    try:
        found = response.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
