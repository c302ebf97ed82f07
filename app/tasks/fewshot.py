"""Few-shot classification: episodes of labelled examples, prototypes, probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from app.domain import BundleInfo, FeatureEngine
from app.errors import FingerprintMismatch
from app.images import PixelBudget
from app.stores.database import Database
from app.stores.support_sets import Episode, NewSupport, NewWay, SupportSets
from app.tasks.features import pooled_pictures
from app.tasks.pictures import Pictures, Source
from app.tasks.timing import Timings
from app.tasks.workers import Workers

METHOD: Literal["prototype"] = "prototype"


class PrototypeHead(Protocol):
    """The head that compares queries with the ways of an episode."""

    def probabilities(
        self, support: Sequence[NDArray[np.float32]], queries: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """N ways of [K, D] and [B, D] float32, unit rows → [B, N] float32, rows summing to one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WayRequest:
    """One class of a new episode and its examples."""

    label: str
    support: Sequence[Source]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRequest:
    """A new episode, and queries to answer at once."""

    name: str | None
    ways: Sequence[WayRequest]
    queries: Sequence[Source]
    top_k: int | None
    abstain_below: float | None
    ttl_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How likely one label is."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One query's answer: best first in `scores`; `label` is None where it abstained."""

    label: str | None
    probability: float
    abstained: bool
    scores: Sequence[Score]


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """A new episode with the predictions asked for (None: none were)."""

    seq: int
    episode: Episode
    predictions: Sequence[Prediction] | None
    timings_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """Predictions of one version of an episode, in the queries' order."""

    episode: Episode
    predictions: Sequence[Prediction]
    timings_ms: Mapping[str, float]


class FewShot:
    """The few-shot task."""

    def __init__(
        self,
        *,
        bundle: BundleInfo,
        engine: FeatureEngine,
        head: PrototypeHead,
        pictures: Pictures,
        database: Database,
        support_sets: SupportSets,
        workers: Workers,
    ) -> None:
        self._bundle = bundle
        self._engine = engine
        self._head = head
        self._pictures = pictures
        self._database = database
        self._support_sets = support_sets
        self._workers = workers

    async def create(self, request: EpisodeRequest, budget: PixelBudget, *, timeout_s: float | None = None) -> Created:
        """Encode and store an episode; queries are answered from what was stored.

        Raises:
            As `Pictures.prepare_all` and `FeatureEngine`; nothing was stored then.
        """
        timings = Timings()
        profile = self._bundle.tasks["fewshot"]
        shots = [len(way.support) for way in request.ways]
        sources = [source for way in request.ways for source in way.support]
        with self._engine.admit(views=len(sources) + len(request.queries), timeout_s=timeout_s) as place:
            with timings.phase("decode"):
                prepared = await self._pictures.prepare_all([*sources, *request.queries], budget, profile)
            vectors = await pooled_pictures(
                self._engine,
                [one.square for one in prepared],
                captions=[None] * len(prepared),
                profile=profile,
                place=place,
                timeout_s=timeout_s,
                timings=timings,
            )
        stored = [
            NewSupport(data=one.data, media_type=one.media_type, vector=vector)
            for one, vector in zip(prepared[: len(sources)], vectors[: len(sources)], strict=True)
        ]
        starts = np.cumsum([0, *shots])
        ways = [
            NewWay(label=way.label, support=stored[starts[index] : starts[index + 1]])
            for index, way in enumerate(request.ways)
        ]
        seq, episode = await self._database.run_write(
            self._support_sets.create,
            ways,
            name=request.name,
            method=METHOD,
            fingerprint=self._bundle.fingerprint,
            ttl_s=request.ttl_s,
        )
        predictions = None
        if request.queries:
            predictions = await self._predict(episode, vectors[len(sources) :], request.top_k, request.abstain_below)
        return Created(seq=seq, episode=episode, predictions=predictions, timings_ms=timings.totals_ms())

    async def classify(
        self,
        episode_id: str,
        queries: Sequence[Source],
        budget: PixelBudget,
        *,
        top_k: int | None,
        abstain_below: float | None,
        timeout_s: float | None = None,
        is_reproducible: bool = False,
    ) -> Classified:
        """Predictions for pictures.

        Raises:
            NotFound: no such episode, or it expired.
            FingerprintMismatch: another bundle made its features.
            As `Pictures.prepare_all` and `FeatureEngine`.
        """
        timings = Timings()
        profile = self._bundle.tasks["fewshot"]
        episode = await self._database.run(self._support_sets.get, episode_id)
        if episode.fingerprint != self._bundle.fingerprint:
            raise FingerprintMismatch("The episode's features were made by another bundle.")
        with self._engine.admit(views=len(queries), timeout_s=timeout_s) as place:
            with timings.phase("decode"):
                prepared = await self._pictures.prepare_all(queries, budget, profile)
            vectors = await pooled_pictures(
                self._engine,
                [one.square for one in prepared],
                captions=[None] * len(prepared),
                profile=profile,
                place=place,
                timeout_s=timeout_s,
                timings=timings,
                is_reproducible=is_reproducible,
            )
        with timings.phase("head"):
            predictions = await self._predict(episode, vectors, top_k, abstain_below)
        return Classified(episode=episode, predictions=predictions, timings_ms=timings.totals_ms())

    async def _predict(
        self, episode: Episode, queries: NDArray[np.float32], top_k: int | None, abstain_below: float | None
    ) -> Sequence[Prediction]:
        support = [np.stack([one.vector for one in way.support]) for way in episode.ways]
        probabilities = await self._workers.run(self._head.probabilities, support, queries)
        labels = [way.label for way in episode.ways]
        return [_prediction(labels, row, top_k, abstain_below) for row in probabilities]


def _prediction(
    labels: Sequence[str], row: NDArray[np.float32], top_k: int | None, abstain_below: float | None
) -> Prediction:
    ranked = sorted(zip(labels, row.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    scores = [Score(label=label, probability=probability) for label, probability in ranked[:top_k]]
    best = scores[0]
    abstained = abstain_below is not None and best.probability < abstain_below
    return Prediction(
        label=None if abstained else best.label,
        probability=best.probability,
        abstained=abstained,
        scores=scores,
    )
