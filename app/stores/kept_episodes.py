"""Episodes read lately, so that one that did not change is not read row by row again."""

from dataclasses import dataclass

from app.bounded_lru import BoundedLru
from app.stores.episode_records import Episode

_ROW_BYTES = 1024
"""Of an example besides its vector."""


@dataclass(slots=True)
class _Kept:
    """The version of an episode that was read last; None before the first."""

    episode: Episode | None = None


class KeptEpisodes:
    """The least recently used are dropped first. A version says which examples there are, and ids are given once."""

    def __init__(self, *, max_bytes: int) -> None:
        self._kept = BoundedLru(_Kept, max_bytes=max_bytes)

    def get(self, episode_id: str, version: int, fingerprint: str) -> Episode | None:
        """The episode in just this version with features of this bundle; None where it is not kept."""
        episode = self._kept.entry(episode_id).episode
        return episode if episode and (episode.version, episode.fingerprint) == (version, fingerprint) else None

    def keep(self, episode: Episode) -> None:
        """Keep an episode, unless an example lacks its features: they may be made without a new version."""
        examples = [one for way in episode.ways for one in way.support]
        if all(one.vector.size for one in examples):
            entry = self._kept.entry(episode.id)
            entry.episode = episode
            self._kept.weigh(episode.id, entry, sum(one.vector.nbytes + _ROW_BYTES for one in examples))
