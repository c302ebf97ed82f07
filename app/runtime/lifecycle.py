"""Where the process stands between its start and its exit; the health routes read it, the server acts on it."""

from collections.abc import Callable
from enum import StrEnum

EXIT_START_FAILED = 3
EXIT_FATAL = 70


class Phase(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """One-way walk from loading to ready to draining, or to failed; touched by the loop thread alone."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.exit_code = 0
        self.on_ready: Callable[[], None] | None = None
        self.on_failure: Callable[[], None] | None = None

    def ready(self) -> None:
        """The bundle is loaded and warm."""
        if self.phase is Phase.LOADING:
            if self.on_ready is not None:
                self.on_ready()
            self.phase = Phase.READY

    def drain(self) -> None:
        """The process was asked to end; running and new requests are still answered."""
        if self.phase is not Phase.FAILED:
            self.phase = Phase.DRAINING

    def fail(self, exit_code: int) -> None:
        """The process cannot serve any more and must end with `exit_code`; the first failure counts."""
        if self.phase is Phase.FAILED:
            return
        self.phase = Phase.FAILED
        self.exit_code = exit_code
        if self.on_failure is not None:
            self.on_failure()
