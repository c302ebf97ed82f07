"""The segmentation task: open-vocabulary masks, and the class sets whose embeddings are stored."""

import asyncio
import re
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.domain import Features, Limits
from app.errors import Invalid, TooMuchWork
from app.imaging.decoding import PixelBudget
from app.imaging.raster import TiledImage
from app.stores.records.class_sets import ClassPrompt, ClassSet, ClassSets
from app.stores.sql.database import Database
from app.tasks.features import RequestEncoder, RequestEncoders, Source, Timings
from app.tasks.masks import Region, regions, without_islands
from app.tasks.workers import Workers
from models.heads.stitching import MAX_CELLS, UNLABELLED, ViewProbabilities, stitch

T = TypeVar("T")
# Characters without a shape of their own (Unicode's default ignorables), the tags of flags, and the blank of Braille.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e01ef]"
)
_JOINER, _FLAG = "\u200d", "\U0001f3f4"
_LONG_NAME, _EQUAL_COSINE = 24, 1 - 1e-6  # letters from which on a text encoder may not read a name to its end


class SegmentationHead(Protocol):
    """The light head that turns dense features into class probabilities."""

    def probabilities(self, dense: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
        """[D, h, w] and [N, D] float32 → [N + 1, h, w] float32, background first, summing to one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentQuery:
    """An image and the classes to find in it: `classes`, or those of a stored `class_set`."""

    source: Source
    classes: Sequence[ClassPrompt]
    has_background: bool
    threshold: float
    caption: str | None
    class_set: str | None = None
    is_reproducible: bool = False
    min_area: int = 0  # px; smaller islands become background


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAnswer:
    """The result for one class; `region` is None where it was not found."""

    index: int
    name: str
    score: float
    region: Region | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAnswer:
    """The masks of one image; `labels` is [H, W] uint8, `image` what was encoded."""

    labels: NDArray[np.uint8]
    fingerprint: str
    classes: Sequence[ClassAnswer]
    image: TiledImage
    timings_ms: Mapping[str, float]


class Segmentation:
    """Segments images, and manages class sets.

    `class_sets`, `class_set` and `delete_class_set` have the arguments and errors of the method of `ClassSets` that
    they run.
    """

    def __init__(
        self,
        *,
        encoders: RequestEncoders,
        head: SegmentationHead,
        workers: Workers,
        limits: Limits,
        database: Database,
        class_sets: ClassSets,
    ) -> None:
        self._encoders = encoders
        self._head = head
        self._workers = workers
        self._limits = limits
        self._database = database
        self._class_sets = class_sets
        self.class_sets = database.reads(class_sets.all)
        self.class_set = database.reads(class_sets.get)
        self.delete_class_set = database.writes(class_sets.delete)

    async def segment(
        self,
        query: SegmentQuery,
        budget: PixelBudget,
        render: Callable[[SegmentAnswer], T],
        *,
        timeout_s: float | None = None,
    ) -> tuple[SegmentAnswer, T]:
        """A mask for every class of the query, and what `render` makes of the answer in the worker pool.

        Raises:
            Whatever `render` raises.
            Invalid: names that are equal, or templates without one `{}`.
            TooMuchWork: too many strings.
            NotFound: there is no such class set.
            FingerprintMismatch: the class set was embedded by another bundle.
            As `ImageInputs.tiles` and `BatchingEngine`.
        """
        timings = Timings()
        stored: NDArray[np.float32] | None = None
        if query.class_set is not None:
            class_set, stored = await self._database.run(self._class_sets.embedded, query.class_set)
            # The embeddings are stored: only the names are needed.
            query = replace(query, classes=[ClassPrompt(name=one.name) for one in class_set.classes])
        prompts = [self._strings(prompt) for prompt in query.classes] if stored is None else []
        self._check(query.classes, prompts)
        if not query.has_background and len(query.classes) > 254:
            raise Invalid("Without a background at most 254 classes fit: 255 marks unlabelled pixels.")
        with self._encoders.admitted(
            "segmentation",
            views=1,
            texts=[string for prompt in prompts for string in prompt],
            timings=timings,
            timeout_s=timeout_s,
            is_reproducible=query.is_reproducible,
        ) as encoder:
            with timings.phase("decode"):
                image = await encoder.inputs.tiles(query.source, budget, encoder.profile)
            # The number of tiles is known only after decoding.
            encoder.reservation.grow(views=len(image.squares) - 1)
            # Room in the worker pool is taken before the device spends anything on the request.
            with self._workers.room(min(MAX_CELLS, image.height * image.width * (len(query.classes) + 1))):
                features, texts = await _encoded(encoder, image, query.caption, prompts, stored)
                if stored is None:
                    _check_read_apart(query.classes, texts)
                asked_s = time.perf_counter()  # the wait for a worker counts as the head's time

                def answer_in_worker() -> tuple[SegmentAnswer, T]:
                    answer = self._answer(query, image, features, texts, timings, asked_s)
                    return answer, render(answer)

                return await self._workers.run(answer_in_worker)

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

    async def embed_classes(
        self, classes: Sequence[ClassPrompt], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """[N, D] float32, unit length: one embedding per class. Raises as `segment`."""
        prompts = [self._strings(prompt) for prompt in classes]
        self._check(classes, prompts)
        strings = [string for prompt in prompts for string in prompt]
        with self._encoders.admitted("segmentation", texts=strings, timeout_s=timeout_s) as encoder:
            texts = await _class_embeddings(encoder, prompts)
        _check_read_apart(classes, texts)
        return texts

    def _strings(self, prompt: ClassPrompt) -> list[str]:
        templates = prompt.templates or self._encoders.bundle.tasks["segmentation"].templates or ("{}",)
        if any(template.count("{}") != 1 for template in templates):
            raise Invalid("A template must hold `{}` exactly once.")
        return [template.replace("{}", name) for name in (prompt.name, *prompt.synonyms) for template in templates]

    def _check(self, classes: Sequence[ClassPrompt], prompts: Sequence[Sequence[str]]) -> None:
        # Names that differ only in case would have masks that no reader can tell apart.
        names = [normalised_name(prompt.name) for prompt in classes]
        if len(names) > self._limits.max_classes:
            raise Invalid(f"At most {self._limits.max_classes} classes a request.")
        if not all(names):
            raise Invalid("A class name is blank.")
        if len(set(names)) < len(names):
            raise Invalid("Class names must be unique.")
        if sum(map(len, prompts)) > self._limits.max_segment_strings:
            raise TooMuchWork(f"Names and templates make more than {self._limits.max_segment_strings} strings.")

    def _answer(
        self,
        query: SegmentQuery,
        image: TiledImage,
        features: Sequence[Features],
        texts: NDArray[np.float32],
        timings: Timings,
        asked_s: float,
    ) -> SegmentAnswer:
        """Masks of all classes; runs in the worker pool."""
        stitched = stitch(
            [
                ViewProbabilities(box=box, values=self._head.probabilities(one.dense, texts))
                for box, one in zip(image.boxes, features, strict=True)
            ],
            height=image.height,
            width=image.width,
            has_background=query.has_background,
            threshold=query.threshold,
            max_bytes=self._limits.max_stitch_bytes,
        )
        labels = stitched.labels
        if query.min_area > 1:
            labels = without_islands(labels, query.min_area, 0 if query.has_background else UNLABELLED)
        found = regions(labels, len(texts))
        timings.add("head", (time.perf_counter() - asked_s) * 1e3)
        rows = zip(query.classes, stitched.scores, found, strict=True)
        return SegmentAnswer(
            labels=labels,
            fingerprint=self._encoders.bundle.fingerprint,
            classes=[
                ClassAnswer(index=index, name=prompt.name, score=float(score) if region else 0.0, region=region)
                for index, (prompt, score, region) in enumerate(rows, start=1)
            ],
            image=image,
            timings_ms=timings.totals_ms(),
        )


async def _encoded(
    encoder: RequestEncoder,
    image: TiledImage,
    caption: str | None,
    prompts: Sequence[Sequence[str]],
    stored: NDArray[np.float32] | None,
) -> tuple[Sequence[Features], NDArray[np.float32]]:
    """Features of the squares and embeddings of the classes, which wait for the device at the same time."""
    captions = [caption] * len(image.squares)
    if stored is not None:
        return await encoder.features(image.squares, image.keys, captions), stored
    timings = encoder.timings
    of_names, of_views = (replace(encoder, timings=Timings(started_s=timings.started_s)) for _ in range(2))
    naming = asyncio.create_task(_class_embeddings(of_names, prompts))
    try:
        features = await of_views.features(image.squares, image.keys, captions)
        texts = await naming
    finally:
        # If one of the two fails, the other must not run on.
        naming.cancel()
        await asyncio.gather(naming, return_exceptions=True)
    timings.add_longest(of_names.timings, of_views.timings)
    return features, texts


async def _class_embeddings(encoder: RequestEncoder, prompts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """[N, D] float32, unit length: the mean over the strings of each class."""
    vectors = await encoder.pooled_texts([string for prompt in prompts for string in prompt])
    bounds = np.cumsum([0, *map(len, prompts)])[:-1]
    # A mean over prompts, then unit length: prompt ensembling as in CLIP (Radford et al. 2021).
    means = np.add.reduceat(vectors, bounds, axis=0)
    return np.asarray(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12), np.float32)


def _check_read_apart(classes: Sequence[ClassPrompt], texts: NDArray[np.float32]) -> None:
    """Raise Invalid where long names have one embedding: they differ beyond what the text encoder reads."""
    long = [at for at, prompt in enumerate(classes) if len(prompt.name) > _LONG_NAME]
    alike = np.argwhere(np.triu(texts[long] @ texts[long].T, 1) > _EQUAL_COSINE)
    if len(alike):
        one, other = (classes[long[at]].name[:40] for at in alike[0])
        raise Invalid(f"The text encoder reads {one!r}… and {other!r}… as one class name: shorten them.")


def normalised_name(name: str) -> str:
    """The name with case, character width and spacing made uniform, and without invisible characters."""
    letters = unicodedata.normalize("NFKC", name)
    # A joiner before a symbol is part of an emoji, tags are part of a flag.
    visible = "".join(
        letter
        for letter, following in zip(letters, f"{letters[1:]} ", strict=False)
        if not _INVISIBLE.match(letter)
        or (letter == _JOINER and unicodedata.category(following) == "So")
        or (letter >= "\U000e0020" and _FLAG in letters)
    )
    return " ".join(unicodedata.normalize("NFKC", visible).casefold().split())
