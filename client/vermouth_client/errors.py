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

    kind: ClassVar[str] = "internal"

    def __init__(self, problem: dict[str, Any], *, retry_after_s: float | None = None) -> None:
        self.status = int(problem.get("status") or 500)
        self.code = str(problem.get("code") or self.kind)
        self.detail = str(problem.get("detail") or problem.get("title") or f"The service answered {self.status}.")
        self.errors: list[dict[str, str]] = problem.get("errors") or []
        self.request_id = str(problem.get("request_id") or "")
        self.retry_after_s = retry_after_s
        fields = "".join(f"\n  {one.get('field')}: {one.get('message')}" for one in self.errors)
        super().__init__(f"{self.detail} [{self.code}, request {self.request_id or 'unknown'}]{fields}")


class Malformed(ServiceError):
    kind = "malformed"


class UndecodableImage(ServiceError):
    kind = "undecodable-image"


class Unauthenticated(ServiceError):
    kind = "unauthenticated"


class Forbidden(ServiceError):
    kind = "forbidden"


class NotFound(ServiceError):
    kind = "not-found"


class MethodNotAllowed(ServiceError):
    kind = "method-not-allowed"


class NotAcceptable(ServiceError):
    kind = "not-acceptable"


class TooSlow(ServiceError):
    kind = "request-timeout"


class Conflict(ServiceError):
    kind = "conflict"


class ResponseLost(ServiceError):
    """The write is done, but its response was lost: read what it wrote."""

    kind = "response-lost"


class FingerprintMismatch(ServiceError):
    kind = "fingerprint-mismatch"


class PreconditionFailed(ServiceError):
    kind = "precondition-failed"


class BodyTooLarge(ServiceError):
    kind = "body-too-large"


class ImageTooLarge(ServiceError):
    kind = "image-too-large"


class TooMuchWork(ServiceError):
    kind = "too-much-work"


class TargetTooLong(ServiceError):
    kind = "target-too-long"


class UnsupportedMedia(ServiceError):
    kind = "unsupported-media"


class UnsupportedCoding(ServiceError):
    kind = "unsupported-coding"


class Invalid(ServiceError):
    kind = "invalid"


class PreconditionRequired(ServiceError):
    kind = "precondition-required"


class QueueFull(ServiceError):
    kind = "queue-full"


class HeadersTooLarge(ServiceError):
    kind = "headers-too-large"


class InferenceFailed(ServiceError):
    kind = "inference-failed"


class Damaged(ServiceError):
    kind = "damaged"


class NotImplementedInHttp(ServiceError):
    kind = "not-implemented"


class EngineUnavailable(ServiceError):
    kind = "unavailable"


class DeadlineExceeded(ServiceError):
    kind = "deadline-exceeded"


class VersionNotSupported(ServiceError):
    kind = "version-not-supported"


class DiskFull(ServiceError):
    kind = "disk-full"


_ALL: list[type[ServiceError]] = [ServiceError, *ServiceError.__subclasses__()]
KINDS = {kind.kind: kind for kind in _ALL}


def error_of(problem: dict[str, Any], *, retry_after_s: float | None = None) -> ServiceError:
    """The error that a problem document describes."""
    return KINDS.get(str(problem.get("code")), ServiceError)(problem, retry_after_s=retry_after_s)


def problem_of(response: httpx.Response) -> dict[str, Any] | None:
    """The problem document of a response; None where it has none, as a proxy's own page."""
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return None
    try:
        found = response.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
