"""The item task: images and metadata written to galleries, read, exported and removed."""

import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from app.domain import BundleInfo, FeatureEngine
from app.errors import Conflict, NotFound, PreconditionFailed, ServiceError
from app.imaging.decoding import ImageDecoder
from app.imaging.raster import DecodedImage
from app.imaging.sources import PixelBudget
from app.stores.filters import Filter
from app.stores.index.follower import Indexes
from app.stores.records.galleries import Galleries
from app.stores.records.items import Change, Exported, Item, Items, NewItem, Removed
from app.stores.sql.database import Database
from app.tasks.features import RequestEncoder, admitted
from app.tasks.inputs import ImageInputs, ItemImage, Source

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRequest:
    """One item to write; the server makes an id where `id` is None."""

    id: str | None
    source: Source
    metadata: Mapping[str, object]
    caption: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPutRequest:
    """One item to create, replace or change; a field that is None is left as it is."""

    id: str
    source: Source | None
    metadata: Mapping[str, object] | None
    caption: str | None


class Status(StrEnum):
    CREATED = "created"
    REPLACED = "replaced"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result for one item: `item` as it was written, or the `error` that rejected it."""

    id: str | None
    status: Status
    item: Item | None = None
    error: ServiceError | None = None


class ItemTask:
    """Writes items (decode, encode, store) and reads them."""

    def __init__(
        self,
        *,
        bundle: BundleInfo,
        engine: FeatureEngine,
        inputs: ImageInputs,
        decoder: ImageDecoder,
        database: Database,
        galleries: Galleries,
        items: Items,
        indexes: Indexes,
    ) -> None:
        self._bundle = bundle
        self._engine = engine
        self._inputs = inputs
        self._decoder = decoder
        self._database = database
        self._galleries = galleries
        self._items = items
        self._indexes = indexes

    @property
    def active_fingerprint(self) -> str:
        """Fingerprint of the bundle whose vectors are searched."""
        return self._indexes.active_fingerprint

    async def add(
        self,
        gallery: str,
        requests: Sequence[ItemRequest],
        budget: PixelBudget,
        *,
        wait: bool = True,
        token: str | None = None,
        if_match: Sequence[int] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, Sequence[Outcome]]:
        """Write items; a bad image rejects its own item only, and of two equal ids the second is rejected.

        Args:
            wait: return when the items are searchable here, not only durable.
            token: of the request's idempotency key: ids are derived from it, and its write is not repeated.
            if_match: every item must exist at one of these `seq`.

        Returns:
            The last write's `seq`, and an outcome for each request, in order.

        Raises:
            NotFound: there is no such gallery.
            Conflict: the token's write is committed already.
            As `ImageInputs.prepare` and `FeatureEngine`; nothing is written then.
        """
        await self._database.run(self._galleries.require, gallery)  # 404 before anything is decoded
        ids = [request.id or _new_id(token, at) for at, request in enumerate(requests)]
        outcomes: dict[int, Outcome] = {}
        # Admission comes before decoding: a request that is refused costs nothing.
        with admitted(self._engine, views=len(requests), timeout_s=timeout_s) as encoder:
            prepared = await self._inputs.prepare(
                [request.source for request in requests], budget, self._bundle.tasks["retrieval"]
            )
            accepted = _accepted(requests, ids, prepared, outcomes)
            new = await self._encoded(requests, ids, accepted, encoder)
        seq = await self._database.run(self._galleries.head_seq)  # the answer's `seq` when all items are rejected
        if new:
            written = await self._database.run_write(
                self._items.upsert, gallery, new, wait=wait, if_match=if_match, token=token
            )
            seq = written.seq
            for (at, _), item, was_replaced in zip(accepted, written.items, written.replaced, strict=True):
                status = Status.REPLACED if was_replaced else Status.CREATED
                outcomes[at] = Outcome(id=ids[at], status=status, item=item)
        return seq, [outcomes[at] for at in range(len(requests))]

    async def put(
        self,
        gallery: str,
        request: ItemPutRequest,
        budget: PixelBudget,
        *,
        wait: bool = True,
        if_match: Sequence[int] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, Item, bool]:
        """Create or replace one item; without an image, change the metadata or the caption of an existing one.

        Returns:
            The write's `seq`, the item, and whether it is new.

        Raises:
            PreconditionFailed: the item is at another `seq`, or changed while its new caption was encoded.
            As `add`, and the image's own error.
        """
        source, metadata = request.source, request.metadata
        if source is None and request.caption is None:
            seq, item = await self._database.run_write(
                self._items.change, gallery, request.id, _replacement(metadata), if_match=if_match
            )
            return seq, item, False
        if source is None:
            # A caption shapes the vector: the stored image is encoded again.
            stored = await self.get(gallery, request.id)
            if if_match is not None and stored.seq not in if_match:
                raise PreconditionFailed(f"The item is at version {stored.seq}.")
            source, metadata = (
                ItemImage(gallery=gallery, id=request.id),
                stored.metadata if metadata is None else metadata,
            )
            # Nothing may be written between this read and the write, or that write would be undone.
            if_match = [stored.seq]
        one = ItemRequest(id=request.id, source=source, metadata=metadata or {}, caption=request.caption)
        seq, (outcome,) = await self.add(gallery, [one], budget, wait=wait, if_match=if_match, timeout_s=timeout_s)
        if outcome.item is None:
            raise outcome.error or NotFound("The item is gone.")
        return seq, outcome.item, outcome.status is Status.CREATED

    async def patch(
        self,
        gallery: str,
        item_id: str,
        patch: Mapping[str, object],
        *,
        check: Callable[[Mapping[str, object]], None],
        if_match: Sequence[int] | None = None,
    ) -> tuple[int, Item]:
        """Apply a JSON merge patch (RFC 7396) to an item's metadata.

        Args:
            check: raises where the merged metadata is not allowed; nothing is written then.

        Returns:
            The write's `seq`, and the item.

        Raises:
            NotFound: there is no such gallery or item.
            PreconditionFailed: the item is at none of `if_match`.
        """

        def change(old: Mapping[str, object]) -> Mapping[str, object]:
            new = _merged(old, patch)
            check(new)  # in the transaction: the limits hold for the merged metadata
            return new

        return await self._database.run_write(self._items.change, gallery, item_id, change, if_match=if_match)

    async def get(self, gallery: str, item_id: str) -> Item:
        """One item. Raises NotFound."""
        return await self._database.run(self._items.item, gallery, item_id)

    async def page(
        self, gallery: str, *, after: str | None, limit: int, where: Filter | None = None
    ) -> tuple[Sequence[Item], str | None]:
        """Up to `limit` items sorted by id that follow `after`, and the cursor of the next page. Raises NotFound."""
        # One more than asked for tells whether there is a next page.
        found = await self._database.run(self._items.page, gallery, after=after, limit=limit + 1, where=where)
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    async def image(self, gallery: str, item_id: str, *, thumbnail_size: int | None) -> tuple[Item, bytes]:
        """One item and its image as stored, or as a WebP thumbnail of that longest side in px. Raises NotFound."""
        item, data = await self._database.run(self._items.image, gallery, item_id)
        if thumbnail_size is not None:
            data = await self._decoder.thumbnail(data, thumbnail_size)
        return item, data

    async def export(self, gallery: str, render: Callable[[Sequence[Exported]], T]) -> tuple[int, AsyncIterator[T]]:
        """All items with their vectors, in parts that `render` converts in the database's pool.

        Returns:
            The `seq` that the export is a snapshot of, and the parts.

        Raises:
            NotFound: there is no such gallery.
            FingerprintMismatch: the gallery was embedded by another bundle.
        """
        seq, parts = await self._database.run(self._items.export, gallery)
        rendered = map(render, parts)  # lazy: reading and rendering take one turn in the pool

        async def stream() -> AsyncIterator[T]:
            while (part := await self._database.run(next, rendered, None)) is not None:
                yield part

        return seq, stream()

    async def remove(
        self, gallery: str, item_id: str, *, wait: bool = True, if_match: Sequence[int] | None = None
    ) -> int:
        """Delete one item and return the write's `seq`. Raises NotFound, PreconditionFailed."""
        return await self._database.run_write(self._items.remove, gallery, item_id, wait=wait, if_match=if_match)

    async def remove_many(
        self,
        gallery: str,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        wait: bool = True,
        token: str | None = None,
    ) -> Removed:
        """Delete the items with these ids, or all that pass a filter, in one transaction.

        Raises:
            NotFound: there is no such gallery.
            Conflict: the token's write is committed already.
        """
        return await self._database.run_write(
            self._items.remove_many, gallery, ids=ids, where=where, wait=wait, token=token
        )

    async def _encoded(
        self,
        requests: Sequence[ItemRequest],
        ids: Sequence[str],
        accepted: Sequence[tuple[int, DecodedImage]],
        encoder: RequestEncoder,
    ) -> Sequence[NewItem]:
        if not accepted:
            return []
        captions = [requests[at].caption for at, _ in accepted]
        vectors = await encoder.pooled_images([one for _, one in accepted], captions, self._bundle.tasks["retrieval"])
        return [
            NewItem(
                id=ids[at],
                data=one.data,
                media_type=one.media_type,
                width=one.width,
                height=one.height,
                metadata=requests[at].metadata,
                caption=requests[at].caption,
                vector=vector,
            )
            for (at, one), vector in zip(accepted, vectors, strict=True)
        ]


def _new_id(token: str | None, at: int) -> str:
    if token is None:  # without an idempotency key a repeat is a new item
        return f"i_{secrets.token_hex(12)}"
    return f"i_{hashlib.sha256(f'{token}:item:{at}'.encode()).hexdigest()[:24]}"


def _accepted(
    requests: Sequence[ItemRequest],
    ids: Sequence[str],
    prepared: Sequence[DecodedImage | ServiceError],
    outcomes: dict[int, Outcome],
) -> list[tuple[int, DecodedImage]]:
    """Position and image of every item to encode; sets the outcomes of the others."""
    seen: set[str] = set()
    accepted: list[tuple[int, DecodedImage]] = []
    for at, (item_id, one) in enumerate(zip(ids, prepared, strict=True)):
        if item_id in seen:
            duplicate = Conflict("Another item of this call has the same id.")
            outcomes[at] = Outcome(id=item_id, status=Status.REJECTED, error=duplicate)
        elif isinstance(one, ServiceError):
            outcomes[at] = Outcome(id=requests[at].id, status=Status.REJECTED, error=one)
        else:
            accepted.append((at, one))
        seen.add(item_id)
    return accepted


def _replacement(metadata: Mapping[str, object] | None) -> Change | None:
    return None if metadata is None else lambda _: metadata


def _merged(target: Mapping[str, object], patch: Mapping[str, object]) -> dict[str, object]:
    """`target` with the members of `patch`: null removes one, objects are merged, everything else replaces."""
    result = dict(target)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            old = result.get(name)
            result[name] = _merged(old if isinstance(old, Mapping) else {}, value)
        else:
            result[name] = value
    return result
