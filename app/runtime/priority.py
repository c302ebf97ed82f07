"""Which threads go first where there are fewer cores than threads: the loop, then decoders, then lanes on a CPU."""

import contextlib
import os
import threading

DECODER_NICENESS = 5
LANE_NICENESS = 10
"""Lanes beside each other take what decoding leaves: pictures that come sooner go together in fuller passes."""


def be_nice(niceness: int) -> None:
    """Let other threads go before this one (Linux; elsewhere all are alike)."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
