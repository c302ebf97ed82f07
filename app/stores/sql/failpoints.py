"""The named moments of a write, for tests that end the process at each of them.

In service nobody listens and a point costs one comparison.
"""

from collections.abc import Callable

POINTS = (
    "blobs.before",
    "blob.temporary",
    "blob.renamed",
    "rows.before",
    "rows.written",
    "rows.committed",
    "index.applied",
    "blobs.collected",
    "snapshot.files",
    "snapshot.renamed",
)

_listeners: list[Callable[[str], None]] = []


def listen(listener: Callable[[str], None]) -> None:
    """Be told of every point that is reached, in the thread that reaches it."""
    _listeners.append(listener)


def failpoint(point: str) -> None:
    """Say that a write has come so far."""
    for listener in _listeners:
        listener(point)
