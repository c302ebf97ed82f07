"""Pictures into galleries: one bad image rejects itself, not its neighbours."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from app.domain import BundleInfo, FeatureEngine, Place
from app.errors import Conflict, NotFound, ServiceError
from app.imaging.sources import PixelBudget
from app.stores.records.galleries import Galleries
from app.stores.records.gallery_records import Item, NewItem
from app.stores.records.items import Items
from app.stores.sql.database import Database
from app.tasks.features import pooled_pictures
from app.tasks.pictures import Pictures, Prepared, Source
from app.tasks.timing import Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRequest:
    """One item to write; `id` None has one made up."""

    id: str | None
    source: Source
    metadata: Mapping[str, object]
    caption: str | None


class Status(StrEnum):
    CREATED = "created"
    REPLACED = "replaced"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one item: `item` as it was written, or `error` where it was rejected."""

    id: str | None
    status: Status
    item: Item | None = None
    error: ServiceError | None = None


class Ingest:
    """Writes items: decode, encode, store."""

    def __init__(
        self,
        *,
        bundle: BundleInfo,
        engine: FeatureEngine,
        pictures: Pictures,
        database: Database,
        galleries: Galleries,
        items: Items,
    ) -> None:
        self._bundle = bundle
        self._engine = engine
        self._pictures = pictures
        self._database = database
        self._galleries = galleries
        self._items = items

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
        """Write items; of two equal ids the later is rejected.

        Args:
            wait: until they are searchable here, not only durable.
            token: made-up ids follow from it, and what was written with it is not written again.
            if_match: every item must be there at one of these `seq`.

        Returns:
            The last write's `seq`, and an outcome for each request, in order.

        Raises:
            NotFound: no such gallery.
            Conflict: the token's write was done before.
            As `Pictures.prepare` and `FeatureEngine`; nothing was written then.
        """
        await self._database.run(self._galleries.require, gallery)
        ids = [request.id or _made_up(token, at) for at, request in enumerate(requests)]
        outcomes: dict[int, Outcome] = {}
        with self._engine.admit(views=len(requests), timeout_s=timeout_s) as place:
            prepared = await self._pictures.prepare(
                [request.source for request in requests], budget, self._bundle.tasks["retrieval"]
            )
            accepted = _accepted(requests, ids, prepared, outcomes)
            new = await self._encoded(requests, ids, accepted, place, timeout_s)
        seq = await self._database.run(self._galleries.head_seq)
        if new:
            written = await self._database.run_write(
                self._items.upsert, gallery, new, wait=wait, if_match=if_match, token=token
            )
            seq = written.seq
            for (at, _), item, was_there in zip(accepted, written.items, written.replaced, strict=True):
                status = Status.REPLACED if was_there else Status.CREATED
                outcomes[at] = Outcome(id=ids[at], status=status, item=item)
        return seq, [outcomes[at] for at in range(len(requests))]

    async def put(
        self,
        gallery: str,
        request: ItemRequest,
        budget: PixelBudget,
        *,
        wait: bool = True,
        if_match: Sequence[int] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, Item, bool]:
        """Create or replace one item.

        Returns:
            The write's `seq`, the item, and whether it is new.

        Raises:
            As `add`, and the picture's own error.
        """
        seq, (outcome,) = await self.add(gallery, [request], budget, wait=wait, if_match=if_match, timeout_s=timeout_s)
        if outcome.item is None:
            raise outcome.error or NotFound("The item is gone.")
        return seq, outcome.item, outcome.status is Status.CREATED

    async def _encoded(
        self,
        requests: Sequence[ItemRequest],
        ids: Sequence[str],
        accepted: Sequence[tuple[int, Prepared]],
        place: Place,
        timeout_s: float | None,
    ) -> Sequence[NewItem]:
        if not accepted:
            return []
        vectors = await pooled_pictures(
            self._engine,
            [one.square for _, one in accepted],
            captions=[requests[at].caption for at, _ in accepted],
            profile=self._bundle.tasks["retrieval"],
            place=place,
            timeout_s=timeout_s,
            timings=Timings(),
        )
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


def _made_up(token: str | None, at: int) -> str:
    if token is None:
        return f"i_{secrets.token_hex(12)}"
    return f"i_{hashlib.sha256(f'{token}:item:{at}'.encode()).hexdigest()[:24]}"


def _accepted(
    requests: Sequence[ItemRequest],
    ids: Sequence[str],
    prepared: Sequence[Prepared | ServiceError],
    outcomes: dict[int, Outcome],
) -> list[tuple[int, Prepared]]:
    """Place and picture of every item worth encoding; the others' outcomes are set."""
    seen: set[str] = set()
    accepted: list[tuple[int, Prepared]] = []
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
