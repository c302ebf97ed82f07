"""Process tuning: how much freed memory the C allocator retains, and which threads run first."""

import contextlib
import ctypes
import os
import threading

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


def be_nice(niceness: int) -> None:
    """Lower the calling thread's priority (Linux only; elsewhere it stays)."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
