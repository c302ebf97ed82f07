"""The few-shot task: episodes of labelled examples, and the classification of queries by them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ParamSpec

import numpy as np
from numpy.typing import NDArray

from app.domain import Limits
from app.errors import Damaged, FingerprintMismatch, Invalid, ServiceError
from app.imaging.decoding import PixelBudget
from app.imaging.raster import DecodedImage
from app.stores.blobs import OpenBlob
from app.stores.records.episode_rows import Episode, EpisodeChange, Way
from app.stores.records.episodes import Episodes, NewSupport, NewWay
from app.stores.sql.database import Database
from app.tasks.features import RequestEncoders, Source, Timings
from app.tasks.workers import Workers
from models.heads.fewshot import CLASSIFIERS, METHODS, LeaveOneOut, Method, leave_one_out

P = ParamSpec("P")
Changed = tuple[int, Episode, LeaveOneOut | None]
"""A write's `seq`, the episode's next version and its report: None where it cannot be computed at once, too."""
Ways = Sequence[Way] | Sequence[NewWay]
MAX_REPORTS = 256
FEW_COMPARISONS = 64
"""Examples times queries that take at most 0.3 ms with prototypes, mostly 0.05: less than a switch of threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WayRequest:
    """One class of a new episode and its examples."""

    label: str
    support: Sequence[Source]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRequest:
    """A new episode, and queries to answer at once."""

    name: str | None
    method: Method
    ways: Sequence[WayRequest]
    queries: Sequence[Source]
    top_k: int | None
    abstain_below: float | None
    ttl_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The probability of one label."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer to one query: `scores` best first; `label` is None where it abstained."""

    label: str | None
    probability: float
    scores: Sequence[Score]

    @property
    def abstained(self) -> bool:
        """Whether the best probability was under the request's threshold."""
        return self.label is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """A new episode; `predictions` is None where the request had no queries."""

    seq: int
    episode: Episode
    leave_one_out: LeaveOneOut | None
    predictions: Sequence[Prediction] | None
    timings_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """Predictions of one version of an episode, in the queries' order."""

    episode: Episode
    predictions: Sequence[Prediction]
    timings_ms: Mapping[str, float]


class FewShot:
    """Creates and changes episodes, and classifies queries.

    `support_image` and `delete` have the arguments and errors of the method of `Episodes` that they run.
    """

    def __init__(
        self, *, encoders: RequestEncoders, database: Database, episodes: Episodes, workers: Workers, limits: Limits
    ) -> None:
        self._encoders = encoders
        self._layout = encoders.layouts["fewshot"]
        self._database = database
        self._episodes = episodes
        self._workers = workers
        self._limits = limits
        self._reports: dict[tuple[str, int], LeaveOneOut | None] = {}
        self.support_image = database.reads(episodes.image)
        self.read_part = database.reads(OpenBlob.read)
        self.delete = database.writes(episodes.delete)

    async def create(
        self, request: EpisodeRequest, budget: PixelBudget, *, token: str | None = None, timeout_s: float | None = None
    ) -> Created:
        """Encode and store an episode, and classify its queries.

        Args:
            token: ids are derived from it, so that a repeated request creates no second episode.

        Raises:
            FingerprintMismatch: another bundle's features are the active ones.
            Invalid: there is no such method.
            As `ImageInputs.prepare_all` and `BatchingEngine`; nothing is stored then.
        """
        if request.method not in METHODS:  # before the device spends anything on it
            raise Invalid(f"There is no method {request.method!r}.")
        sources = [*_sources(request.ways), *request.queries]  # queries share the passes of the examples
        with self._encoders.admitted("fewshot", views=len(sources), timeout_s=timeout_s) as encoder:
            images, vectors = await encoder.encode_images(sources, budget)
        ways = _new_ways(request.ways, images, vectors)
        predictions = None
        if request.queries:  # before the write: once it is done, nothing may refuse the request
            queries = vectors[-len(request.queries) :]
            predictions = await self._predict(ways, request.method, queries, request.top_k, request.abstain_below)
        seq, episode, left_out = await self._write(
            self._episodes.create, ways, name=request.name, method=request.method, ttl_s=request.ttl_s, token=token
        )
        return Created(
            seq=seq,
            episode=episode,
            leave_one_out=left_out,
            predictions=predictions,
            timings_ms=encoder.timings.totals_ms(),
        )

    async def add_support(
        self,
        episode_id: str,
        ways: Sequence[WayRequest],
        budget: PixelBudget,
        *,
        if_match: Sequence[int] | None,
        token: str | None = None,
        timeout_s: float | None = None,
    ) -> Changed:
        """Encode and store more examples; stored ones are not encoded again.

        Raises:
            As `create` and `Episodes.add`.
        """
        await self._database.run(self._episodes.get, episode_id)  # 404 before anything is encoded
        sources = _sources(ways)
        with self._encoders.admitted("fewshot", views=len(sources), timeout_s=timeout_s) as encoder:
            new = _new_ways(ways, *await encoder.encode_images(sources, budget))
        return await self._write(
            self._episodes.add, episode_id, new, if_match=if_match, limits=self._limits, token=token
        )

    async def remove_support(self, episode_id: str, support_id: str, *, if_match: Sequence[int] | None) -> Changed:
        """Remove one example. Raises as `Episodes.remove`."""
        return await self._write(self._episodes.remove, episode_id, support_id, if_match=if_match)

    async def remove_way(self, episode_id: str, label: str, *, if_match: Sequence[int] | None) -> Changed:
        """Remove a way. Raises as `Episodes.remove_way`."""
        return await self._write(self._episodes.remove_way, episode_id, label, if_match=if_match)

    async def change(self, episode_id: str, changed: EpisodeChange, *, if_match: Sequence[int] | None) -> Changed:
        """Change fields and labels. Raises as `Episodes.change`."""
        return await self._write(self._episodes.change, episode_id, changed, if_match=if_match)

    async def get(self, episode_id: str) -> tuple[Episode, LeaveOneOut | None]:
        """One episode and its leave-one-out report. Raises NotFound."""
        episode = await self._database.run(self._episodes.get, episode_id)
        return episode, await self._report(episode)

    async def page(self, *, after: str | None, limit: int) -> tuple[Sequence[Episode], str | None, int]:
        """Up to `limit` episodes by id that follow `after`, the cursor of the next page, and how many there are."""
        found = await self._database.run(self._episodes.all, after=after, limit=limit + 1)
        total = await self._database.run(self._episodes.count)
        return found[:limit], found[limit - 1].id if len(found) > limit else None, total

    async def _report(self, episode: Episode) -> LeaveOneOut | None:
        """The leave-one-out report of one version; None where no way has two examples or the bundle is another."""
        key = (episode.id, episode.version)
        if episode.fingerprint != self._encoders.bundle.fingerprint:
            return None
        if key not in self._reports:  # a version never changes, so its report is computed once
            labels = [way.label for way in episode.ways]
            found = await self._workers.run(leave_one_out, method_of(episode), labels, self._support(episode.ways))
            while len(self._reports) >= MAX_REPORTS:  # oldest first: dicts keep their order
                self._reports.pop(next(iter(self._reports)))
            self._reports[key] = found
        return self._reports[key]

    async def _write(self, write: Callable[P, tuple[int, Episode]], *args: P.args, **kwargs: P.kwargs) -> Changed:
        """Run a write. Raises as it does: once it is done, a report that cannot be computed is left out."""
        seq, episode = await self._database.run_write(write, *args, **kwargs)
        try:
            return seq, episode, await self._report(episode)
        except ServiceError:
            return seq, episode, None

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
        """Classify images by an episode.

        Raises:
            NotFound: there is no such episode, or it expired.
            FingerprintMismatch: another bundle made its features.
            As `ImageInputs.prepare_all` and `BatchingEngine`.
        """
        timings = Timings()
        episode = await self._database.run(self._episodes.get, episode_id)
        if episode.fingerprint != self._encoders.bundle.fingerprint:
            raise FingerprintMismatch("The episode's features were made by another bundle.")
        with self._encoders.admitted(
            "fewshot", views=len(queries), timings=timings, timeout_s=timeout_s, is_reproducible=is_reproducible
        ) as encoder:
            _, vectors = await encoder.encode_images(queries, budget)
        with timings.phase("head"):
            predictions = await self._predict(episode.ways, method_of(episode), vectors, top_k, abstain_below)
        return Classified(episode=episode, predictions=predictions, timings_ms=timings.totals_ms())

    async def _predict(
        self, ways: Ways, method: Method, queries: NDArray[np.float32], top_k: int | None, abstain_below: float | None
    ) -> Sequence[Prediction]:
        support, queries = self._support(ways), self._layout.unit(queries)
        head, comparisons = CLASSIFIERS[method], sum(map(len, support)) * len(queries)
        if method == "prototype" and comparisons <= FEW_COMPARISONS:
            probabilities = head(support, queries)
        else:
            probabilities = await self._workers.run(head, support, queries)
        labels = [way.label for way in ways]
        return [_prediction(labels, row, top_k, abstain_below) for row in probabilities]

    def _support(self, ways: Ways) -> list[NDArray[np.float32]]:
        """[K, J] float32 of each way, unit rows."""
        return [self._layout.unit(np.stack([one.vector for one in way.support])) for way in ways]


def method_of(episode: Episode) -> Method:
    """The episode's method. Raises Damaged where this release has no such method."""
    for method in METHODS:
        if method == episode.method:
            return method
    raise Damaged(f"The episode {episode.id!r} is of the method {episode.method!r}, which this release lacks.")


def _sources(ways: Sequence[WayRequest]) -> list[Source]:
    return [source for way in ways for source in way.support]


def _new_ways(ways: Sequence[WayRequest], images: Sequence[DecodedImage], vectors: NDArray[np.float32]) -> list[NewWay]:
    """Ways to store; their images and vectors come first in `images` and `vectors`, in order."""
    pairs = zip(images, vectors, strict=True)  # one iterator for all ways: each takes its share
    return [
        NewWay(
            label=way.label,
            support=[
                NewSupport(data=image.data, media_type=image.media_type, vector=vector)
                for _, (image, vector) in zip(way.support, pairs, strict=False)
            ],
        )
        for way in ways
    ]


def _prediction(
    labels: Sequence[str], row: NDArray[np.float32], top_k: int | None, abstain_below: float | None
) -> Prediction:
    # Equal probabilities by label, so that the order does not depend on the platform.
    ranked = sorted(zip(labels, row.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    scores = [Score(label=label, probability=probability) for label, probability in ranked[:top_k]]
    best = scores[0]
    abstains = abstain_below is not None and best.probability < abstain_below
    return Prediction(label=None if abstains else best.label, probability=best.probability, scores=scores)
