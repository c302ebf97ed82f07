"""The retrieval task: search by sketch, image, text and liked items, and embeddings in the text space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid
from app.imaging.decoding import PixelBudget
from app.stores.filters import Filter
from app.stores.index.follower import Indexes
from app.stores.records.galleries import Galleries, Hit
from app.stores.sql.database import Database
from app.tasks.features import RequestEncoder, RequestEncoders, Source, Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveQuery:
    """A search by at least one of `sketch`, `image`, `text`, `like` and `unlike`; the last two are ids of items."""

    sketch: Source | None
    image: Source | None
    text: str | None
    text_weight: float
    gallery: str
    k: int
    min_score: float | None
    caption: str | None
    like: Sequence[str] = ()
    unlike: Sequence[str] = ()
    where: Filter | None = None
    offset: int = 0
    is_reproducible: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveAnswer:
    """Results, best first, as of `index_seq`; `total` items pass the filter."""

    gallery: str
    index_seq: int
    fingerprint: str
    results: Sequence[Hit]
    total: int
    timings_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedAnswer:
    """Unit vectors: `images` [B, D] and `texts` [T, D], float32."""

    fingerprint: str
    dimension: int
    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    timings_ms: Mapping[str, float]


class Retrieval:
    """Searches galleries, and embeds images and texts."""

    def __init__(self, encoders: RequestEncoders, database: Database, galleries: Galleries, indexes: Indexes) -> None:
        self._encoders = encoders
        self._layout = encoders.layouts["retrieval"]
        self._database = database
        self._galleries = galleries
        self._indexes = indexes

    async def retrieve(
        self, query: RetrieveQuery, budget: PixelBudget, *, timeout_s: float | None = None
    ) -> RetrieveAnswer:
        """The nearest items of a gallery.

        Raises:
            NotFound: there is no such gallery, or an item of `like` or `unlike` is not in it.
            FingerprintMismatch: the gallery was embedded by another bundle.
            Invalid: the parts of the query cancel each other out.
            As `ImageInputs.prepare_all` and `BatchingEngine`.
        """
        timings = Timings()
        self._indexes.require(query.gallery)  # 404 and 409 before anything is decoded
        layout, parts = self._layout, list[tuple[float, NDArray[np.float32]]]()
        if query.like or query.unlike:
            liked = await self._database.run(self._galleries.vectors, query.gallery, [*query.like, *query.unlike])
            parts += [(1.0, layout.weighted(liked[item_id])) for item_id in query.like]
            parts += [(-1.0, layout.weighted(liked[item_id])) for item_id in query.unlike]
        sources = [source for source in (query.sketch, query.image) if source is not None]
        texts = [] if query.text is None else [query.text]
        with self._encoders.admitted(
            "retrieval",
            views=len(sources),
            texts=texts,
            timings=timings,
            timeout_s=timeout_s,
            is_reproducible=query.is_reproducible,
        ) as encoder:
            images, vectors = await self._encoded(encoder, sources, texts, budget, caption=query.caption)
        # A sketch is compared with items as a text is; an image, which comes last, as two items are.
        sketches = images if query.image is None else images[:-1]
        seen = [*layout.spread("semantic", self._semantic(sketches)), *layout.weighted(images[len(sketches) :])]
        # The weight balances images and text; one alone counts in full.
        parts += [(1.0 - query.text_weight if texts else 1.0, image) for image in seen]
        parts += [(query.text_weight if sources else 1.0, text) for text in layout.spread("semantic", vectors)]
        vector = self._combined(parts)  # one query vector: the index is searched once
        with timings.phase("search"):
            seq, found, total = await self._database.run(
                self._galleries.search,
                query.gallery,
                vector,
                k=query.k,
                min_score=query.min_score,
                where=query.where,
                offset=query.offset,
            )
        return RetrieveAnswer(
            gallery=query.gallery,
            index_seq=seq,
            fingerprint=self._encoders.bundle.fingerprint,
            results=found,
            total=total,
            timings_ms=timings.totals_ms(),
        )

    async def embed(
        self,
        sources: Sequence[Source],
        texts: Sequence[str],
        budget: PixelBudget,
        *,
        timeout_s: float | None = None,
        is_reproducible: bool = False,
    ) -> EmbedAnswer:
        """Vectors of images and texts, in order. Raises as `retrieve`."""
        with self._encoders.admitted(
            "retrieval", views=len(sources), texts=texts, timeout_s=timeout_s, is_reproducible=is_reproducible
        ) as encoder:
            images, vectors = await self._encoded(encoder, sources, texts, budget)
        return EmbedAnswer(
            fingerprint=self._encoders.bundle.fingerprint,
            dimension=self._encoders.bundle.dimension,
            images=self._semantic(images),
            texts=vectors,
            timings_ms=encoder.timings.totals_ms(),
        )

    async def _encoded(
        self,
        encoder: RequestEncoder,
        sources: Sequence[Source],
        texts: Sequence[str],
        budget: PixelBudget,
        *,
        caption: str | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Vectors of images as they are stored, [B, J], and embeddings of strings, [T, D]; float32."""
        images = np.empty((0, len(self._layout.weights)), np.float32)
        vectors = np.empty((0, self._encoders.bundle.dimension), np.float32)
        if sources:
            _, images = await encoder.encode_images(sources, budget, [caption] * len(sources))
        if texts:
            vectors = await encoder.pooled_texts(texts)
        return images, vectors

    def _semantic(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """[B, D] of [B, J]."""
        return images[:, self._layout.slices["semantic"]]

    def _combined(self, parts: Sequence[tuple[float, NDArray[np.float32]]]) -> NDArray[np.float32]:
        """normalise(Σ weight · vector), [J] float32.

        Over the sum of its slices' lengths, so that a score is a mean of cosines, weighted by these lengths.
        """
        total = np.sum([weight * vector for weight, vector in parts], axis=0)
        norm = sum(float(np.linalg.norm(total[part])) for part in self._layout.slices.values())
        if norm < 1e-6:  # a direction made of rounding errors would return arbitrary items
            raise Invalid("The parts of the query cancel each other out.")
        return np.asarray(total / norm, np.float32)
