"""Which episodes stay in memory."""

import numpy as np

from app.stores.records.episodes import Episode, EpisodeCache, Support, Way


def test_asking_for_episodes_that_are_not_there_drops_none_that_is() -> None:
    vector = np.eye(4, dtype=np.float32)[0]
    support = Support(id="s_1", sha256="", media_type="image/png", vector=vector)
    episode = Episode(
        id="ep_1",
        name=None,
        version=1,
        method="prototype",
        fingerprint="f",
        expires_at=None,
        ways=[Way(label="a", support=[support])],
    )
    kept = EpisodeCache(max_bytes=4096)
    kept.keep(episode, read_at=7)
    for number in range(100):
        assert kept.unchanged(f"ep_none{number}", written=7) is None
        assert kept.get(f"ep_none{number}", 1, "f", read_at=7) is None
    assert kept.unchanged("ep_1", written=7) is episode
    assert kept.get("ep_1", 1, "f", read_at=8) is episode
    assert kept.get("ep_1", 2, "f", read_at=8) is None
