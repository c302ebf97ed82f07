"""The process: its phase from start to exit, how much freed memory it retains, and which threads run first."""

import contextlib
import ctypes
import os
import resource
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

EXIT_START_FAILED = 3
EXIT_FATAL = 70  # EX_SOFTWARE in sysexits.h
MAX_DESCRIPTORS = 65_536  # enough, where the hard limit is higher or none
DECODER_NICENESS = 5
WORKER_NICENESS = 10
"""Of the engine's CPU workers, below the decoders: images that are decoded sooner share fuller batches."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # from malloc.h
_ALLOCATOR = (
    (_M_MMAP_THRESHOLD, "MALLOC_MMAP_THRESHOLD_", 32 << 20),
    (_M_TRIM_THRESHOLD, "MALLOC_TRIM_THRESHOLD_", 512 << 20),
    # A thread's arena consists of heaps of 64 MiB; with this much to spare glibc returns none of them.
    (_M_TOP_PAD, "MALLOC_TOP_PAD_", 64 << 20),
)


class Phase(StrEnum):
    """Phases of the process; `/livez` and `/readyz` report them by value."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(slots=True)
class Deadline:
    """The longest that a request may take, s; longer once the warm-up has shown that the device needs it."""

    seconds: float


class Lifecycle:
    """Moves one way: loading → ready → draining, or failed. Only the event loop's thread uses it.

    Attributes:
        stage: what is loaded now; the thread that loads sets it.
        reason: why the start failed and what to do, in a sentence; empty otherwise.
    """

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.stage = ""
        self.exit_code = 0
        self.reason = ""
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

    def fail(self, exit_code: int, reason: str = "") -> None:
        """Report that the process cannot serve and must exit with `exit_code`; only the first failure counts."""
        if self.phase is Phase.FAILED:
            return
        self.phase = Phase.FAILED
        self.exit_code, self.reason = exit_code, reason
        if self.on_failure is not None:
            self.on_failure()


def keep_freed_memory() -> bool:
    """Make glibc retain freed memory: blocks up to 32 MiB each, 512 MiB in all (docs/adr/0029).

    By default glibc returns a freed block of some megabytes to the system, so that the next pass faults on every page
    of the same size of block again. Options set in the environment stay as they are, and so do preloaded allocators.

    Returns:
        Whether all options were set; False under another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    is_ours = "glibc.malloc." not in os.environ.get("GLIBC_TUNABLES", "")
    wanted = [(option, value) for option, variable, value in _ALLOCATOR if is_ours and variable not in os.environ]
    taken = [mallopt(option, value) == 1 for option, value in wanted]
    return all(taken)


def descriptor_limit() -> int:
    """Raise this process's limit of open descriptors as far as it may be, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(MAX_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than the one it names
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def be_nice(niceness: int) -> None:
    """Lower the calling thread's priority (Linux only; elsewhere it stays)."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
