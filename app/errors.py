"""The errors that clients may see, without internal details.

Each class is an entry of the catalogue `GET /errors/{code}`; only `app.api.problems` turns one into a response.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One invalid field: its path, such as `items[3].metadata`, and a sentence."""

    field: str
    message: str


class ServiceError(Exception):
    """Base of the errors that clients may see; `detail` is a sentence for the client."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = (), retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s


class Malformed(ServiceError):
    status, code, title = 400, "malformed", "Malformed request"


class UndecodableImage(ServiceError):
    status, code, title = 400, "undecodable-image", "The bytes are not a readable image"


class Unauthenticated(ServiceError):
    status, code, title = 401, "unauthenticated", "Missing or unknown API key"


class Forbidden(ServiceError):
    status, code, title = 403, "forbidden", "The API key lacks the scope"


class NotFound(ServiceError):
    status, code, title = 404, "not-found", "Not found"


class MethodNotAllowed(ServiceError):
    status, code, title = 405, "method-not-allowed", "Method not allowed"


class NotAcceptable(ServiceError):
    status, code, title = 406, "not-acceptable", "No representation fits Accept"


class TooSlow(ServiceError):
    status, code, title = 408, "request-timeout", "The request did not arrive in time"


class Conflict(ServiceError):
    status, code, title = 409, "conflict", "Conflict with the present state"


# The caller reads what was written, or writes again under another key.
class ResponseLost(ServiceError):
    status, code, title = 409, "response-lost", "The write is done, but its response was lost"


# Vectors of two models are not comparable, though they may have one length.
class FingerprintMismatch(ServiceError):
    status, code, title = 409, "fingerprint-mismatch", "Features were made by another model"


class PreconditionFailed(ServiceError):
    status, code, title = 412, "precondition-failed", "The version differs from If-Match"


class BodyTooLarge(ServiceError):
    status, code, title = 413, "body-too-large", "The request body is too large"


class ImageTooLarge(ServiceError):
    status, code, title = 413, "image-too-large", "An image holds too many pixels"


class TooMuchWork(ServiceError):
    status, code, title = 413, "too-much-work", "The request asks for too much work"


class TargetTooLong(ServiceError):
    status, code, title = 414, "target-too-long", "The path and query are too long"


class UnsupportedMedia(ServiceError):
    status, code, title = 415, "unsupported-media", "Format or content type outside the allow-list"


class UnsupportedCoding(ServiceError):
    status, code, title = 415, "unsupported-coding", "The content coding is not supported"


class Invalid(ServiceError):
    status, code, title = 422, "invalid", "A value is out of bounds or not in the schema"


class PreconditionRequired(ServiceError):
    status, code, title = 428, "precondition-required", "If-Match is required"


# `retry_after_s` is the wait that the measured rate predicts.
class QueueFull(ServiceError):
    status, code, title = 429, "queue-full", "The queue is full"


class HeadersTooLarge(ServiceError):
    status, code, title = 431, "headers-too-large", "The headers are too large or too many"


class InferenceFailed(ServiceError):
    status, code, title = 500, "inference-failed", "The model failed on this input"


class Damaged(ServiceError):
    status, code, title = 500, "damaged", "What was stored is damaged"


class NotImplementedInHttp(ServiceError):
    status, code, title = 501, "not-implemented", "The method or transfer coding is not implemented"


LOAD_RETRY_AFTER_S = 5.0  # a load takes seconds on a small bundle, minutes on a large one


class EngineUnavailable(ServiceError):
    status, code, title = 503, "unavailable", "Loading, draining or failed"


class DeadlineExceeded(ServiceError):
    status, code, title = 504, "deadline-exceeded", "The deadline passed"


class VersionNotSupported(ServiceError):
    status, code, title = 505, "version-not-supported", "The service speaks HTTP/1.0 and HTTP/1.1"


class DiskFull(ServiceError):
    status, code, title = 507, "disk-full", "No space left to store this"
