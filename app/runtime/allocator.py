"""What the C library does with memory that is given back: kept, since the next pass wants as much (docs/adr/0029)."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = (
    (_M_MMAP_THRESHOLD, "MALLOC_MMAP_THRESHOLD_", 32 << 20),
    (_M_TRIM_THRESHOLD, "MALLOC_TRIM_THRESHOLD_", 512 << 20),
    (_M_TOP_PAD, "MALLOC_TOP_PAD_", 64 << 20),
)


def keep_freed_memory() -> bool:
    """Have glibc hold on to what a pass frees, and take large blocks from it, up to 32 MiB each and 512 MiB in all.

    A thread's arena is made of heaps of 64 MiB; with so much to spare none of them is given back either.

    By default a block of some megabytes goes back to the system when it is freed, and every page of the next one is a
    fault. Threads keep arenas of their own: in a shared one a block was last written by another core. What the
    environment sets is left as it is.

    Returns:
        Whether it was set; False under another C library. An allocator that was preloaded is not changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    is_ours = "glibc.malloc." not in os.environ.get("GLIBC_TUNABLES", "")
    wanted = [(option, value) for option, variable, value in _SETTINGS if is_ours and variable not in os.environ]
    taken = [mallopt(option, value) == 1 for option, value in wanted]
    return all(taken)
