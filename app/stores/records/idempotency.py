"""Responses of writes by their `Idempotency-Key`, so that a client may repeat a request whose response it lost."""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from app.errors import Conflict, ResponseLost, ServiceError
from app.stores.sql.database import Database
from app.stores.sql.tables import idempotency_keys

RETAINED_S = 24 * 3600.0
RELEASE_WAIT_S = 0.5  # longest that the end of a request waits for the release of its key
RELEASE_RETRY_S = 1.0
EXPIRED_AT_ONCE = 100  # most expired keys that one request removes, so that no caller pays for all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response as it was sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The state of a key for the request that claims it.

    Attributes:
        token: generated ids derive from it, so that a repeat after a crash writes the same rows.
        answer: the stored response; None if the request must be processed.
    """

    token: str
    answer: Answer | None


class IdempotencyKeys:
    """The keys of the last day; all methods but `claimed` and `keep` block.

    Args:
        hold_s: how long a request may take before its key can be claimed again; longer than any deadline.
    """

    def __init__(self, database: Database, *, hold_s: float) -> None:
        self._database = database
        self.hold_s = hold_s
        self._releases: set[asyncio.Task[None]] = set()

    def release_all(self) -> None:
        """Release all held keys, at the start of the only process: their requests died with the one before."""
        self._release(sa.true())

    @asynccontextmanager
    async def claimed(self, key: str, request: str) -> AsyncIterator[Claim]:
        """Claim a key for a block of work; an error in the block lets the next request claim it. Raises as `claim`."""
        # The end of a hold also tells it from any other of the key, such as that of a request that took it over.
        until_s = time.time() + self.hold_s + random.uniform(0.0, 1e-3)
        try:
            claim = await self._database.run_write(self.claim, key, request, until_s)
        except asyncio.CancelledError:  # the claim may be made all the same
            await self._release_soon(key, until_s)
            raise
        try:
            yield claim
        except BaseException:
            # A cancelled request too: its write, if it was committed, refuses to be repeated. Stored answers stay.
            await self._release_soon(key, until_s)
            raise

    async def keep(self, key: str, answer: Answer) -> None:
        """Store the answer of a request, even if the request is cancelled meanwhile: its write is committed."""
        await asyncio.shield(self._database.run_write(self.store, key, answer))

    def claim(self, key: str, request: str, until_s: float) -> Claim:
        """Hold a key for a request, or return the stored response.

        Args:
            key: digest of the client's key and the caller.
            request: digest of method, address and body.
            until_s: when another request may take the key over, though nobody released it.

        Raises:
            Conflict: the key was used for a different request, or its request is still being processed.
        """
        now = time.time()
        with self._database.write() as connection:
            old = sa.select(idempotency_keys.c.key).where(idempotency_keys.c.expires_at <= now).limit(EXPIRED_AT_ONCE)
            connection.execute(sa.delete(idempotency_keys).where(idempotency_keys.c.key.in_(old)))
            known = sa.select(idempotency_keys).where(idempotency_keys.c.key == key)
            row = connection.execute(known).one_or_none()
            if row is None:
                token = secrets.token_hex(16)  # stored before the work begins: a repeat after a crash has it too
                values = {"key": key, "request": request, "token": token}
                times = {"held_until": until_s, "expires_at": now + RETAINED_S}
                connection.execute(sa.insert(idempotency_keys), {**values, **times})
                return Claim(token=token, answer=None)
            if row.request != request:  # a client's mistake, never answered with another request's response
                raise Conflict("The Idempotency-Key was already used for a different request: choose another key.")
            if row.status is not None:  # answered: the response is repeated
                return Claim(token=row.token, answer=Answer(status=row.status, headers=row.headers, body=row.body))
            if row.held_until > now:
                raise Conflict("The request of this Idempotency-Key is still being processed.", retry_after_s=1.0)
            # Its process died or gave up: this request takes over with the same token.
            change = sa.update(idempotency_keys).where(idempotency_keys.c.key == key)
            connection.execute(change.values(held_until=until_s))
            return Claim(token=row.token, answer=None)

    def store(self, key: str, answer: Answer) -> None:
        """Store the response to the request that holds a key."""
        values = {"status": answer.status, "headers": dict(answer.headers), "body": answer.body}
        with self._database.write() as connection:
            connection.execute(sa.update(idempotency_keys).where(idempotency_keys.c.key == key).values(values))

    def release(self, key: str, until_s: float) -> None:
        """Release a key whose request failed, for the next request with it, unless another one holds it."""
        self._release(sa.and_(idempotency_keys.c.key == key, idempotency_keys.c.held_until == until_s))

    async def _release_soon(self, key: str, until_s: float) -> None:
        """Release a key behind its request's claim and writes, which may still wait for the writer's thread."""
        # A task of its own: a deadline may pass while a client that left is being cleaned up after, or the reverse.
        task = asyncio.create_task(self._release_surely(key, until_s))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        await asyncio.wait({task}, timeout=RELEASE_WAIT_S)

    async def _release_surely(self, key: str, until_s: float) -> None:
        while time.time() < until_s:
            try:
                await self._database.run_write(self.release, key, until_s)
                return
            except ServiceError:  # the store is busy or away
                await asyncio.sleep(RELEASE_RETRY_S)

    def _release(self, condition: sa.ColumnElement[bool]) -> None:
        held = sa.update(idempotency_keys).where(condition, idempotency_keys.c.status.is_(None))
        with self._database.write() as connection:
            connection.execute(held.values(held_until=0.0))


def require_undone(connection: sa.Connection, token: str | None) -> None:
    """Check, in a write's transaction and before anything is written, that a token's write is not done yet.

    Raises:
        ResponseLost: the write was committed before.
    """
    if token is None:
        return
    known = sa.select(idempotency_keys.c.done_seq).where(idempotency_keys.c.token == token)
    done = connection.execute(known).scalar_one_or_none()
    if done is not None:
        raise ResponseLost(f"The write of this Idempotency-Key was committed at seq {done}; its response was lost.")


def note_done(connection: sa.Connection, token: str | None, seq: int) -> None:
    """Record, in a write's transaction, that a token's write is done."""
    if token is not None:
        own = sa.update(idempotency_keys).where(idempotency_keys.c.token == token)
        connection.execute(own.values(done_seq=seq))
