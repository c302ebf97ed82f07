"""What the store of episodes takes and gives."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSupport:
    """One labelled example to store; `vector` is [D] float32, unit length."""

    data: bytes
    media_type: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWay:
    """One class and examples to store."""

    label: str
    support: Sequence[NewSupport]


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """One stored example; `vector` is [D] float32, unit length, empty where another bundle made it."""

    id: str
    sha256: str
    media_type: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPicture:
    """The picture of an example as it was sent."""

    sha256: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One class and its examples."""

    label: str
    support: Sequence[Support]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A stored episode; `expires_at` in seconds since 1970, None for never."""

    id: str
    name: str | None
    version: int
    method: str
    fingerprint: str
    expires_at: float | None
    ways: Sequence[Way]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaySummary:
    """One class and how many examples it has."""

    label: str
    shots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSummary:
    """An episode as lists tell it: without its examples."""

    id: str
    name: str | None
    version: int
    method: str
    fingerprint: str
    expires_at: float | None
    ways: Sequence[WaySummary]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeLimits:
    """Most ways an episode may have, and most examples a way."""

    ways: int
    support_per_way: int
