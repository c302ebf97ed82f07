"""The phase of the process, from start to exit: health routes read it, the server acts on it."""

from collections.abc import Callable
from enum import StrEnum

EXIT_START_FAILED = 3
EXIT_FATAL = 70  # EX_SOFTWARE in sysexits.h


class Phase(StrEnum):
    """Phases of the process; `/livez` and `/readyz` report them by value."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """Moves one way: loading → ready → draining, or failed. Only the event loop's thread uses it."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.exit_code = 0
        self.on_ready: Callable[[], None] | None = None
        self.on_failure: Callable[[], None] | None = None

    def ready(self) -> None:
        """Report that the bundle is loaded and warm."""
        # A load that ends after a SIGTERM changes nothing: the process is draining already.
        if self.phase is Phase.LOADING:
            if self.on_ready is not None:
                self.on_ready()
            self.phase = Phase.READY

    def drain(self) -> None:
        """Report that the process was asked to stop; running and new requests are still answered."""
        if self.phase is not Phase.FAILED:
            self.phase = Phase.DRAINING

    def fail(self, exit_code: int) -> None:
        """Report that the process cannot serve and must exit with `exit_code`; only the first failure counts."""
        if self.phase is Phase.FAILED:
            return
        self.phase = Phase.FAILED
        self.exit_code = exit_code
        if self.on_failure is not None:
            self.on_failure()
