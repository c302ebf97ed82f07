"""Failpoints: named moments of a write at which tests end the process. Without a listener a failpoint does nothing."""

from typing import Protocol

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


class FailpointListener(Protocol):
    """Called at every failpoint, in the thread that passes it."""

    def __call__(self, point: str) -> None: ...


_listeners: list[FailpointListener] = []


def listen(listener: FailpointListener) -> None:
    """Add a listener to all failpoints."""
    _listeners.append(listener)


def failpoint(point: str) -> None:
    """Call the listeners with one of `POINTS`."""
    for listener in _listeners:
        listener(point)
