"""Idempotency keys: the first answer of a write, returned to every repeat of the request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.stores.records.idempotency import Answer, Claim, IdempotencyKeys
from app.stores.sql.database import Database


class Idempotency:
    """Claims keys for requests and stores their answers."""

    def __init__(self, *, database: Database, keys: IdempotencyKeys) -> None:
        self._database = database
        self._keys = keys

    @asynccontextmanager
    async def claimed(self, key: str, request: str) -> AsyncIterator[Claim]:
        """Claim a key for a block of work; an error in the block lets the next request claim it.

        Args:
            key: digest of the caller and the client's key.
            request: digest of the request's address and body.

        Raises:
            Conflict: the key was already used for a different request, or its request is still running.
        """
        claim = await self._database.run_write(self._keys.claim, key, request)
        try:
            yield claim
        except BaseException:
            # A cancelled request too: its write, if it was committed, refuses to be repeated. Stored answers stay.
            await self._database.run_write(self._keys.release, key)
            raise

    async def keep(self, key: str, answer: Answer) -> None:
        """Store the answer of a request, even if the request is cancelled meanwhile: its write is committed."""
        await asyncio.shield(self._database.run_write(self._keys.store, key, answer))
