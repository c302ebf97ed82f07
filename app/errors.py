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
    """The service failed; its log has the cause under the `request_id`.

    Also the base of all errors that clients may see. The docstring of each says what its client does about it, and
    `docs/errors.md` lists them. `detail` is a sentence for the client, `retry_after_s` the predicted wait.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = (), retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s


class Malformed(ServiceError):
    """The request cannot be parsed: its body, a form, a header or a path. Correct what `detail` names."""

    status, code, title = 400, "malformed", "Malformed request"


class UndecodableImage(ServiceError):
    """The bytes are no image, or a damaged one. Send another file."""

    status, code, title = 400, "undecodable-image", "The bytes are not a readable image"


class Unauthenticated(ServiceError):
    """No key came, or an unknown one. Send one as `Authorization: Bearer …` or `X-API-Key: …`."""

    status, code, title = 401, "unauthenticated", "Missing or unknown API key"


class Forbidden(ServiceError):
    """The key lacks the scope, or the page's origin is not allowed. `vermouth keys create` makes keys of a scope."""

    status, code, title = 403, "forbidden", "The API key lacks the scope"


class NotFound(ServiceError):
    """What the path or the body names does not exist, or its time is over."""

    status, code, title = 404, "not-found", "Not found"


class MethodNotAllowed(ServiceError):
    """The path has other methods; `Allow` lists them."""

    status, code, title = 405, "method-not-allowed", "Method not allowed"


class NotAcceptable(ServiceError):
    """`Accept` rules out every form of the answer. Allow one that `detail` names."""

    status, code, title = 406, "not-acceptable", "No representation fits Accept"


class TooSlow(ServiceError):
    """Headers took over 10 s, or the body came at less than 10 kB/s. Send it again, over a faster connection."""

    status, code, title = 408, "request-timeout", "The request did not arrive in time"


class Conflict(ServiceError):
    """The state does not allow this, such as a second use of an idempotency key. `detail` says what would."""

    status, code, title = 409, "conflict", "Conflict with the present state"


class ResponseLost(ServiceError):
    """The write of this idempotency key is done. Read what it wrote, or write again under another key."""

    status, code, title = 409, "response-lost", "The write is done, but its response was lost"


class FingerprintMismatch(ServiceError):
    """Vectors of two bundles are not comparable. Run `vermouth reembed`, or create the episode again."""

    status, code, title = 409, "fingerprint-mismatch", "Features were made by another model"


class PreconditionFailed(ServiceError):
    """Somebody else was faster. Read it again and repeat the change with its new `ETag`."""

    status, code, title = 412, "precondition-failed", "The version differs from If-Match"


class BodyTooLarge(ServiceError):
    """The body is over the limit. Send less at once, or raise `VERMOUTH_LIMITS__MAX_BODY_BYTES`."""

    status, code, title = 413, "body-too-large", "The request body is too large"


class ImageTooLarge(ServiceError):
    """Pixels or a side are over the limit. Scale the image down, or raise the limit in the settings."""

    status, code, title = 413, "image-too-large", "An image holds too many pixels"


class TooMuchWork(ServiceError):
    """The request is valid and asks for too much. Ask for less, or in several requests."""

    status, code, title = 413, "too-much-work", "The request asks for too much work"


class TargetTooLong(ServiceError):
    """Put values into a body instead of the query."""

    status, code, title = 414, "target-too-long", "The path and query are too long"


class UnsupportedMedia(ServiceError):
    """Convert the image to a format, or send the content type, that `detail` names."""

    status, code, title = 415, "unsupported-media", "Format or content type outside the allow-list"


class UnsupportedCoding(ServiceError):
    """Send the body plain, or as gzip or deflate."""

    status, code, title = 415, "unsupported-coding", "The content coding is not supported"


class Invalid(ServiceError):
    """`errors` lists each field with what is wrong with it."""

    status, code, title = 422, "invalid", "A value is out of bounds or not in the schema"


class PreconditionRequired(ServiceError):
    """Send the `ETag` of the version that you change as `If-Match`."""

    status, code, title = 428, "precondition-required", "If-Match is required"


class QueueFull(ServiceError):
    """The service is busy. Send the request again after `Retry-After` seconds, as the clients do."""

    status, code, title = 429, "queue-full", "The queue is full"


class HeadersTooLarge(ServiceError):
    """Send fewer or shorter headers."""

    status, code, title = 431, "headers-too-large", "The headers are too large or too many"


class InferenceFailed(ServiceError):
    """The model has no result for this image. Other images are not affected."""

    status, code, title = 500, "inference-failed", "The model failed on this input"


class Damaged(ServiceError):
    """A checksum is wrong. `vermouth db check` names the rows, `vermouth db repair` computes vectors again."""

    status, code, title = 500, "damaged", "What was stored is damaged"


class NotImplementedInHttp(ServiceError):
    """Use a method of HTTP, and chunks or a length."""

    status, code, title = 501, "not-implemented", "The method or transfer coding is not implemented"


LOAD_RETRY_AFTER_S = 5.0  # a load takes seconds on a small bundle, minutes on a large one


class EngineUnavailable(ServiceError):
    """Send the request again after `Retry-After` seconds; `/readyz` says when the service is ready."""

    status, code, title = 503, "unavailable", "Loading, draining or failed"


class DeadlineExceeded(ServiceError):
    """The answer would come too late. Send it again when the service is less busy, or set a longer deadline."""

    status, code, title = 504, "deadline-exceeded", "The deadline passed"


class VersionNotSupported(ServiceError):
    """Use HTTP/1.1."""

    status, code, title = 505, "version-not-supported", "The service speaks HTTP/1.0 and HTTP/1.1"


class DiskFull(ServiceError):
    """Free some space on the disk of `VERMOUTH_DATA_DIR` or of the images. Nothing was stored."""

    status, code, title = 507, "disk-full", "No space left to store this"
