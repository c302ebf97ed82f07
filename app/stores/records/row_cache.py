"""Rows of items found lately, so that a search after which nothing was written asks the database nothing."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ItemRow:
    """What a search tells of an item besides its score; never write into it."""

    external_id: str
    metadata: Mapping[str, object]


class KeptRows:
    """Rows as of one `Database.written`; used by several threads.

    Args:
        max_rows: once there are more, none is left.
    """

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._rows: dict[int, ItemRow] = {}
        self._read_at = -1

    def get(self, ids: Sequence[int], written: int | None) -> dict[int, ItemRow] | None:
        """The rows of all of them, where they were read and nothing was written since; else None.

        Args:
            written: `Database.written` now.
        """
        with self._lock:
            if written != self._read_at:
                return None
            found = {item_id: self._rows[item_id] for item_id in ids if item_id in self._rows}
        return found if len(found) == len(ids) else None

    def keep(self, rows: Mapping[int, ItemRow], read_at: int | None) -> None:
        """Keep rows.

        Args:
            read_at: `Database.written` before they were read; None keeps nothing.
        """
        with self._lock:
            if read_at is None or read_at < self._read_at:
                return
            if read_at != self._read_at or len(self._rows) + len(rows) > self._max_rows:
                self._rows, self._read_at = {}, read_at
            self._rows.update(rows)
