"""What a connection holds of a message that is still arriving, bounded for each and for all together."""

from app import errors
from app.api.transport.connections import Connections
from app.api.transport.refusals import MAX_HEADER_BYTES, headers_too_large
from app.errors import ServiceError

MAX_TORN_BYTES = 128 << 10  # headers, chunk sizes and extensions and trailers of one unfinished message
FRAMING_PER_BYTE = 8  # of chunked bodies: a chunk of one byte takes five more
SMALL_TORN_BYTES = 4 << 10  # headers in two packets are refused to nobody


class TornMessage:
    """The newest message of a connection, torn while its headers, or the rest of its body, are still to come.

    All it holds beside its body counts: headers, chunk sizes, chunk extensions and trailers.
    """

    def __init__(self, register: Connections) -> None:
        self.is_torn = False
        self.has_headers = False
        self._register = register
        self._body_bytes = 0
        self._new_body_bytes = 0  # of the piece that is being parsed
        self._held_bytes = 0

    def begin(self) -> None:
        """Note that a message begins; the one before, which may end in the same piece, is not counted for it."""
        self.forget()
        self.is_torn, self.has_headers = True, False
        self._body_bytes = 0

    def add_body(self, n_bytes: int) -> None:
        """Note a part of the body."""
        self._body_bytes += n_bytes
        self._new_body_bytes += n_bytes

    def account(self, n_bytes: int) -> ServiceError | None:
        """Account for a piece that was parsed; returns why the message that it leaves torn is refused."""
        framing, self._new_body_bytes = n_bytes - self._new_body_bytes, 0
        if not self.is_torn:
            self.forget()
            return None
        self._held_bytes += framing
        self._register.torn_bytes += framing
        if not self.has_headers and self._held_bytes > MAX_HEADER_BYTES:
            return headers_too_large()
        if self._held_bytes > MAX_TORN_BYTES + FRAMING_PER_BYTE * self._body_bytes:
            return errors.Malformed("The chunks have more framing than content.")
        if self._register.torn_bytes > self._register.limits.max_torn_bytes and framing > SMALL_TORN_BYTES:
            return errors.EngineUnavailable("Too many requests with unfinished headers.", retry_after_s=1.0)
        return None

    def forget(self) -> None:
        """Take what the message holds out of the register's sum."""
        self._register.torn_bytes -= self._held_bytes
        self._held_bytes = 0
