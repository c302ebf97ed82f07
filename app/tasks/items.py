"""The item task: images and metadata written to galleries, read, exported and removed."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

from app.errors import Conflict, NotFound, PreconditionFailed, QueueFull, ServiceError
from app.imaging.decoding import ImageDecoder, PixelBudget
from app.imaging.raster import DecodedImage
from app.runtime.lru import ENTRY_BYTES, ByteLru
from app.stores.blobs import OpenBlob
from app.stores.filters import Filter
from app.stores.index.follower import Indexes
from app.stores.records.exports import Exported, Exports
from app.stores.records.galleries import Galleries
from app.stores.records.items import Change, Item, Items, NewItem
from app.stores.sql.database import Database
from app.tasks.features import ItemImage, RequestEncoder, RequestEncoders, Source
from models.types import VectorLayout

T = TypeVar("T")
MAX_WAITING_EXPORTS = 16
THUMBNAIL_BYTES = 16 << 20
"""Memory of the cache of thumbnails; a card of the playground takes about 3 KB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRequest:
    """One item to write; the server makes an id where `id` is None."""

    id: str | None
    source: Source
    metadata: Mapping[str, object]
    caption: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result for one item: `item` as it was written, or the `error` that rejected it."""

    id: str | None
    status: Literal["created", "replaced", "rejected"]
    item: Item | None = None
    error: ServiceError | None = None


class ItemTask:
    """Writes items (decode, encode, store) and reads them.

    `get`, `remove` and `remove_many` have the arguments and errors of the method of `Items` that they run.
    """

    def __init__(
        self,
        *,
        encoders: RequestEncoders,
        decoder: ImageDecoder,
        database: Database,
        galleries: Galleries,
        items: Items,
        exports: Exports,
        indexes: Indexes,
    ) -> None:
        self._encoders = encoders
        self._decoder = decoder
        self._database = database
        self._galleries = galleries
        self._items = items
        self._exports = exports
        self._indexes = indexes
        self._exporting = asyncio.Semaphore(1)  # parts read at once: any number of exports delays others by one part
        self._waiting_exports = 0
        self._thumbnails = ByteLru[tuple[str, int], bytes](THUMBNAIL_BYTES)
        self.get = database.reads(items.item)
        self.open_image = database.reads(items.open_image)
        self.read_part = database.reads(OpenBlob.read)
        self.remove = database.writes(items.remove)
        self.remove_many = database.writes(items.remove_many)

    @property
    def layout(self) -> VectorLayout:
        """Of the vectors of items."""
        return self._encoders.layouts["retrieval"]

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
            ResponseLost: the token's write is committed already.
            As `ImageInputs.prepare` and `BatchingEngine`; nothing is written then.
        """
        await self._database.run(self._galleries.require, gallery)  # 404 before anything is decoded
        ids = [request.id or _new_id(token, at) for at, request in enumerate(requests)]
        outcomes: dict[int, Outcome] = {}
        # Admission comes before decoding: a request that is refused costs nothing.
        with self._encoders.admitted("retrieval", views=len(requests), timeout_s=timeout_s) as encoder:
            sources = [request.source for request in requests]
            prepared = await encoder.inputs.prepare(sources, budget, encoder.profile)
            accepted = _accepted(requests, ids, prepared, outcomes)
            new = await _encoded(requests, ids, accepted, encoder) if accepted else []
        seq = await self._database.run(self._galleries.head_seq)  # the answer's `seq` when all items are rejected
        if new:
            written = await self._database.run_write(
                self._items.upsert, gallery, new, wait=wait, if_match=if_match, token=token
            )
            seq = written.seq
            for (at, _), item, was_replaced in zip(accepted, written.items, written.replaced, strict=True):
                outcomes[at] = Outcome(id=ids[at], status="replaced" if was_replaced else "created", item=item)
        return seq, [outcomes[at] for at in range(len(requests))]

    async def put(
        self,
        gallery: str,
        item_id: str,
        budget: PixelBudget,
        *,
        source: Source | None,
        metadata: Mapping[str, object] | None,
        caption: str | None,
        wait: bool = True,
        if_match: Sequence[int] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, Item, bool]:
        """Create or replace one item; without an image, change the fields of an existing one that are not None.

        Returns:
            The write's `seq`, the item, and whether it is new.

        Raises:
            PreconditionFailed: the item is at another `seq`, or changed while its new caption was encoded.
            As `add`, and the image's own error.
        """
        if source is None and caption is None:
            change = None if metadata is None else _replaced_by(metadata)
            seq, item = await self._database.run_write(self._items.change, gallery, item_id, change, if_match=if_match)
            return seq, item, False
        if source is None:
            # A caption shapes the vector: the stored image is encoded again.
            stored = await self.get(gallery, item_id)
            if if_match is not None and stored.seq not in if_match:
                raise PreconditionFailed(f"The item is at version {stored.seq}.")
            source = ItemImage(gallery=gallery, id=item_id)
            metadata = stored.metadata if metadata is None else metadata
            # Nothing may be written between this read and the write, or that write would be undone.
            if_match = [stored.seq]
        one = ItemRequest(id=item_id, source=source, metadata=metadata or {}, caption=caption)
        seq, (outcome,) = await self.add(gallery, [one], budget, wait=wait, if_match=if_match, timeout_s=timeout_s)
        if outcome.item is None:
            raise outcome.error or NotFound("The item is gone.")
        return seq, outcome.item, outcome.status == "created"

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

    async def page(
        self, gallery: str, *, after: str | None, limit: int, where: Filter | None = None
    ) -> tuple[Sequence[Item], str | None, int]:
        """Up to `limit` items sorted by id that follow `after`, the cursor of the next page, and how many there are.

        Raises NotFound.
        """
        found, has_more = await self._database.run(self._items.page, gallery, after=after, limit=limit, where=where)
        total = await self._database.run(self._galleries.matching, gallery, where)
        return found, found[-1].id if has_more else None, total

    async def thumbnail(self, gallery: str, item_id: str, size: int) -> tuple[Item, bytes]:
        """One item and a WebP thumbnail of its image whose longest side is `size` px. Raises NotFound."""
        item = await self.get(gallery, item_id)
        thumbnail = self._thumbnails.get((item.sha256, size))
        if thumbnail is None:
            item, data = await self._database.run(self._items.image, gallery, item_id)
            thumbnail = await self._decoder.thumbnail(data, size)
            self._thumbnails.put((item.sha256, size), thumbnail, len(thumbnail) + ENTRY_BYTES)
        return item, thumbnail

    async def export(self, gallery: str, render: Callable[[Sequence[Exported]], T]) -> tuple[int, AsyncIterator[T]]:
        """All items with their vectors, in parts that `render` converts in the database's pool.

        Returns:
            The `seq` that the export is a snapshot of, and the parts.

        Raises:
            NotFound: there is no such gallery.
            FingerprintMismatch: the gallery was embedded by another bundle.
            QueueFull: many exports wait for their next part: those would hold the slots that others need.
        """
        if self._waiting_exports >= MAX_WAITING_EXPORTS:
            raise QueueFull("Too many exports are under way.", retry_after_s=1.0)
        with self._waiting_export():
            seq, parts = await self._database.run(self._exports.export, gallery)
        rendered = map(render, parts)  # lazy: reading and rendering take one turn in the pool

        async def stream() -> AsyncIterator[T]:
            while True:
                with self._waiting_export():
                    async with self._exporting:
                        part = await self._database.run(next, rendered, None)
                if part is None:
                    return
                yield part

        return seq, stream()

    @contextmanager
    def _waiting_export(self) -> Iterator[None]:
        self._waiting_exports += 1
        try:
            yield
        finally:
            self._waiting_exports -= 1

    async def export_images(self, gallery: str) -> tuple[int, AsyncIterator[tuple[Exported, bytes]]]:
        """All items with the bytes of their images, one at a time. Returns and raises as `export`.

        An item that is replaced meanwhile comes as it is then, and one that is deleted may be missing.
        """
        seq, parts = await self.export(gallery, list)

        async def stream() -> AsyncIterator[tuple[Exported, bytes]]:
            async for part in parts:
                for one in part:  # read one by one: images of a whole part would not fit into memory
                    found = await self._database.run(self._exports.exported_image, gallery, one)
                    if found is not None:
                        yield found

        return seq, stream()


async def _encoded(
    requests: Sequence[ItemRequest],
    ids: Sequence[str],
    accepted: Sequence[tuple[int, DecodedImage]],
    encoder: RequestEncoder,
) -> Sequence[NewItem]:
    vectors = await encoder.image_vectors([one for _, one in accepted], [requests[at].caption for at, _ in accepted])
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
            outcomes[at] = Outcome(id=item_id, status="rejected", error=duplicate)
        elif isinstance(one, ServiceError):
            outcomes[at] = Outcome(id=requests[at].id, status="rejected", error=one)
        else:
            accepted.append((at, one))
        seen.add(item_id)
    return accepted


def _replaced_by(metadata: Mapping[str, object]) -> Change:
    return lambda _: metadata


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
