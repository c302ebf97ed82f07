"""Episodes read lately, so that one that did not change is not read row by row again."""

import time
from dataclasses import dataclass

from app.runtime.lru import BoundedLru
from app.stores.records.episode_records import Episode

_ROW_BYTES = 1024
"""Of an example besides its vector."""


@dataclass(slots=True)
class _Kept:
    """What was read last: an episode, and `Database.written` when it was as the database has it; None before the first.

    One value, so that who reads it without a lock never sees one's episode under another's number.
    """

    read: tuple[Episode, int | None] | None = None


class KeptEpisodes:
    """The least recently used are dropped first. A version says which examples there are, and ids are given once."""

    def __init__(self, *, max_bytes: int) -> None:
        self._kept = BoundedLru(_Kept, max_bytes=max_bytes)

    def unchanged(self, episode_id: str, written: int | None) -> Episode | None:
        """The episode where nothing was written since it was read and it has not expired; None: it must be asked for.

        Args:
            written: `Database.written` now.
        """
        kept = self._kept.known(episode_id)
        if kept is None or kept.read is None:
            return None
        episode, read_at = kept.read
        if written is None or read_at != written:
            return None
        return episode if episode.expires_at is None or episode.expires_at > time.time() else None

    def get(self, episode_id: str, version: int, fingerprint: str, read_at: int | None) -> Episode | None:
        """The episode in just this version with features of this bundle, as it was read now; None where it is not kept.

        Args:
            read_at: as `keep`.
        """
        kept = self._kept.known(episode_id)
        if kept is None or kept.read is None:
            return None
        episode, _ = kept.read
        if (episode.version, episode.fingerprint) != (version, fingerprint):
            return None
        kept.read = episode, read_at
        return episode

    def keep(self, episode: Episode, read_at: int | None) -> None:
        """Keep an episode, unless an example lacks its features: they may be made without a new version.

        Args:
            read_at: `Database.written` before it was read.
        """
        examples = [one for way in episode.ways for one in way.support]
        if all(one.vector.size for one in examples):
            entry = self._kept.entry(episode.id)
            entry.read = episode, read_at
            self._kept.weigh(episode.id, entry, sum(one.vector.nbytes + _ROW_BYTES for one in examples))
