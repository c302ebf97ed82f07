"""Open-vocabulary masks: views to the engine, names to text, probabilities stitched to a label map."""

import asyncio
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.domain import BundleInfo, FeatureEngine, Features, Limits, Reservation, View
from app.errors import Invalid, TooMuchWork
from app.imaging.raster import TiledImage
from app.imaging.sources import PixelBudget
from app.stores.records.class_sets import ClassPrompt, ClassSet, ClassSets
from app.stores.sql.database import Database
from app.tasks.features import Timings, pooled_texts, view_of
from app.tasks.inputs import ImageInputs, Source
from app.tasks.segmentation.masks import Region, regions
from app.tasks.workers import Workers
from models.heads.stitching import MAX_CELLS, Stitched, ViewProbabilities, stitch
from models.types import TaskProfile

T = TypeVar("T")


class SegmentationHead(Protocol):
    """The light head that turns dense features into class probabilities."""

    def probabilities(self, dense: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
        """[D, h, w] and [N, D] float32 → [N + 1, h, w] float32, background first, summing to one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentQuery:
    """What to look for in which picture: `classes`, or those of a stored `class_set`."""

    source: Source
    classes: Sequence[ClassPrompt]
    has_background: bool
    threshold: float
    caption: str | None
    class_set: str | None = None
    is_reproducible: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAnswer:
    """One class: `region` is None where it was not found."""

    index: int
    name: str
    score: float
    region: Region | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAnswer:
    """The masks of one picture; `labels` is [H, W] uint8."""

    labels: NDArray[np.uint8]
    fingerprint: str
    classes: Sequence[ClassAnswer]
    timings_ms: Mapping[str, float]


class Segmentation:
    """The segmentation task."""

    def __init__(
        self,
        *,
        bundle: BundleInfo,
        engine: FeatureEngine,
        head: SegmentationHead,
        inputs: ImageInputs,
        workers: Workers,
        limits: Limits,
        database: Database,
        class_sets: ClassSets,
    ) -> None:
        self._bundle = bundle
        self._engine = engine
        self._head = head
        self._inputs = inputs
        self._workers = workers
        self._limits = limits
        self._database = database
        self._class_sets = class_sets

    async def segment(
        self,
        query: SegmentQuery,
        budget: PixelBudget,
        render: Callable[[SegmentAnswer], T],
        *,
        timeout_s: float | None = None,
    ) -> tuple[SegmentAnswer, T]:
        """A mask for every class of the request, and what `render` makes of them where they are made.

        Raises:
            Whatever `render` raises.
            Invalid: names that are equal, or templates without one `{}`.
            TooMuchWork: too many strings.
            NotFound: there is no such class set.
            FingerprintMismatch: the class set was embedded by another bundle.
            As `ImageInputs.tiles` and `FeatureEngine`.
        """
        timings = Timings()
        profile = self._bundle.tasks["segmentation"]
        ready: NDArray[np.float32] | None = None
        if query.class_set is not None:
            stored, ready = await self._database.run(self._class_sets.embedded, query.class_set)
            query = replace(query, classes=[ClassPrompt(name=one.name) for one in stored.classes])
        prompts = [self._strings(prompt, profile) for prompt in query.classes] if ready is None else []
        self._check(query.classes, prompts)
        if not query.has_background and len(query.classes) > 254:
            raise Invalid("Without a background at most 254 classes fit: 255 marks unlabelled pixels.")
        strings = sum(map(len, prompts))
        with self._engine.admit(views=1, texts=strings, timeout_s=timeout_s) as reservation:
            with timings.phase("decode"):
                image = await self._inputs.tiles(query.source, budget, profile)
            views = [
                view_of(square, key, caption=query.caption, profile=profile, is_reproducible=query.is_reproducible)
                for square, key in zip(image.squares, image.keys, strict=True)
            ]
            reservation.grow(views=len(views) - 1)
            cells = min(MAX_CELLS, image.height * image.width * (len(query.classes) + 1))
            with self._workers.room(cells):
                features, texts = await self._encoded(query, views, prompts, ready, reservation, timeout_s, timings)
                asked_s = time.perf_counter()

                def answered() -> tuple[SegmentAnswer, T]:
                    stitched, found = self._masks(query, image, features, texts)
                    timings.add("head", (time.perf_counter() - asked_s) * 1e3)
                    answer = self._answer(query, stitched, found, timings)
                    return answer, render(answer)

                return await self._workers.run(answered)

    async def _encoded(
        self,
        query: SegmentQuery,
        views: Sequence[View],
        prompts: Sequence[Sequence[str]],
        ready: NDArray[np.float32] | None,
        reservation: Reservation,
        timeout_s: float | None,
        timings: Timings,
    ) -> tuple[Sequence[Features], NDArray[np.float32]]:
        """Features of the views and embeddings of the classes, unless `ready`; they wait for the device together."""
        if ready is not None:
            features = await self._engine.encode_views(
                views, timeout_s=timings.left_s(timeout_s), reservation=reservation
            )
            timings.add_device(features)
            return features, ready
        names, passes = Timings(started_s=timings.started_s), Timings(started_s=timings.started_s)
        naming = asyncio.create_task(
            self._class_embeddings(prompts, reservation, timeout_s, names, query.is_reproducible)
        )
        try:
            features = await self._engine.encode_views(
                views, timeout_s=timings.left_s(timeout_s), reservation=reservation
            )
            texts = await naming
        finally:
            # Whichever fails takes the other along.
            naming.cancel()
            await asyncio.gather(naming, return_exceptions=True)
        passes.add_device(features)
        timings.add_longest(names, passes)
        return features, texts

    async def put_class_set(
        self,
        name: str,
        classes: Sequence[ClassPrompt],
        *,
        if_match: Sequence[int] | None,
        timeout_s: float | None = None,
    ) -> tuple[int, ClassSet, bool]:
        """Embed the classes of a set and store it.

        Returns:
            The write's `seq`, the class set, and whether it is new.

        Raises:
            As `segment`, and PreconditionFailed: its version is none of `if_match`.
        """
        vectors = await self.embed_classes(classes, timeout_s=timeout_s)
        return await self._database.run_write(self._class_sets.put, name, classes, vectors, if_match=if_match)

    async def class_sets(self) -> Sequence[ClassSet]:
        """Every class set, sorted by name."""
        return await self._database.run(self._class_sets.all)

    async def class_set(self, name: str) -> ClassSet:
        """One class set. Raises NotFound."""
        return await self._database.run(self._class_sets.get, name)

    async def delete_class_set(self, name: str, *, if_match: Sequence[int] | None) -> int:
        """Delete a class set and return the write's `seq`. Raises NotFound, PreconditionFailed."""
        return await self._database.run_write(self._class_sets.delete, name, if_match=if_match)

    async def embed_classes(
        self, classes: Sequence[ClassPrompt], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """[N, D] float32, unit length: one embedding a class. Raises as `segment`."""
        prompts = [self._strings(prompt, self._bundle.tasks["segmentation"]) for prompt in classes]
        self._check(classes, prompts)
        with self._engine.admit(texts=sum(map(len, prompts)), timeout_s=timeout_s) as reservation:
            return await self._class_embeddings(prompts, reservation, timeout_s, Timings(), False)

    def _strings(self, prompt: ClassPrompt, profile: TaskProfile) -> list[str]:
        templates = prompt.templates or profile.templates or ("{}",)
        for template in templates:
            if template.count("{}") != 1:
                raise Invalid("A template must hold `{}` exactly once.")
        return [template.replace("{}", name) for name in (prompt.name, *prompt.synonyms) for template in templates]

    def _check(self, classes: Sequence[ClassPrompt], prompts: Sequence[Sequence[str]]) -> None:
        names = [normalised_name(prompt.name) for prompt in classes]
        if len(names) > self._limits.max_classes:
            raise Invalid(f"At most {self._limits.max_classes} classes a request.")
        if not all(names):
            raise Invalid("A class name is blank.")
        if len(set(names)) < len(names):
            raise Invalid("Class names must be unique.")
        if sum(map(len, prompts)) > self._limits.max_segment_strings:
            raise TooMuchWork(f"Names and templates make more than {self._limits.max_segment_strings} strings.")

    async def _class_embeddings(
        self,
        prompts: Sequence[Sequence[str]],
        reservation: Reservation,
        timeout_s: float | None,
        timings: Timings,
        is_reproducible: bool,
    ) -> NDArray[np.float32]:
        """[N, D] float32, unit length: the mean over a class's strings."""
        strings = [string for prompt in prompts for string in prompt]
        vectors = await pooled_texts(
            self._engine,
            strings,
            reservation=reservation,
            timeout_s=timeout_s,
            timings=timings,
            is_reproducible=is_reproducible,
        )
        bounds = np.cumsum([0, *map(len, prompts)])[:-1]
        means = np.add.reduceat(vectors, bounds, axis=0)
        return np.asarray(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12), np.float32)

    def _answer(
        self, query: SegmentQuery, stitched: Stitched, found: Sequence[Region | None], timings: Timings
    ) -> SegmentAnswer:
        answers = [
            ClassAnswer(index=index, name=prompt.name, score=float(score), region=region)
            for index, (prompt, score, region) in enumerate(
                zip(query.classes, stitched.scores, found, strict=True), start=1
            )
        ]
        return SegmentAnswer(
            labels=stitched.labels,
            fingerprint=self._bundle.fingerprint,
            classes=answers,
            timings_ms=timings.totals_ms(),
        )

    def _masks(
        self,
        query: SegmentQuery,
        image: TiledImage,
        features: Sequence[Features],
        texts: NDArray[np.float32],
    ) -> tuple[Stitched, list[Region | None]]:
        views = [
            ViewProbabilities(box=box, values=self._head.probabilities(feature.dense, texts))
            for box, feature in zip(image.boxes, features, strict=True)
        ]
        stitched = stitch(
            views,
            height=image.height,
            width=image.width,
            has_background=query.has_background,
            threshold=query.threshold,
            max_bytes=self._limits.max_stitch_bytes,
        )
        return stitched, regions(stitched.labels, len(texts))


def normalised_name(name: str) -> str:
    """A name without differences of case, width and spacing."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
