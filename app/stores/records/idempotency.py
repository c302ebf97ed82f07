"""Answers of writes by their `Idempotency-Key`, so that a client may repeat a request it lost sight of."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from app.errors import Conflict
from app.stores.sql.database import Database
from app.stores.sql.tables import idempotency_keys

KEPT_S = 24 * 3600.0
CLEARED_AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response as it was given."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A key as this request finds it.

    Attributes:
        token: made-up ids follow from it, so that a repeat after a crash writes the same rows.
        answer: what was answered before; None where the request must be worked on.
    """

    token: str
    answer: Answer | None


class IdempotencyKeys:
    """All keys of a day; every method blocks, call them through `Database.run_write`.

    Args:
        hold_s: how long a request may work before its key may be taken over; longer than any deadline.
    """

    def __init__(self, database: Database, *, hold_s: float) -> None:
        self._database = database
        self._hold_s = hold_s

    def release_all(self) -> None:
        """At start, where this process is the only one: whoever held a key is gone."""
        held = idempotency_keys.c.status.is_(None)
        with self._database.write() as connection:
            connection.execute(sa.update(idempotency_keys).where(held).values(held_until=0.0))

    def claim(self, key: str, request: str) -> Claim:
        """Take a key, or find what it was answered with.

        Args:
            key: digest of the client's key and the caller.
            request: digest of method, address and body.

        Raises:
            Conflict: the key came with another request, or its request is at work just now.
        """
        now = time.time()
        with self._database.write() as connection:
            _clear_expired(connection, now)
            known = sa.select(idempotency_keys).where(idempotency_keys.c.key == key)
            row = connection.execute(known).one_or_none()
            if row is None:
                token = secrets.token_hex(16)
                values = {"key": key, "request": request, "token": token}
                times = {"held_until": now + self._hold_s, "expires_at": now + KEPT_S}
                connection.execute(sa.insert(idempotency_keys), {**values, **times})
                return Claim(token=token, answer=None)
            if row.request != request:
                raise Conflict("The Idempotency-Key came with another request before.")
            if row.status is not None:
                return Claim(token=row.token, answer=Answer(status=row.status, headers=row.headers, body=row.body))
            if row.held_until > now:
                raise Conflict("The request of this Idempotency-Key is at work.", retry_after_s=1.0)
            change = sa.update(idempotency_keys).where(idempotency_keys.c.key == key)
            connection.execute(change.values(held_until=now + self._hold_s))
            return Claim(token=row.token, answer=None)

    def keep(self, key: str, answer: Answer) -> None:
        """Remember what the request was answered with."""
        values = {"status": answer.status, "headers": dict(answer.headers), "body": answer.body}
        with self._database.write() as connection:
            connection.execute(sa.update(idempotency_keys).where(idempotency_keys.c.key == key).values(values))

    def release(self, key: str) -> None:
        """Let the next request with this key work: this one failed."""
        open_key = sa.and_(idempotency_keys.c.key == key, idempotency_keys.c.status.is_(None))
        with self._database.write() as connection:
            connection.execute(sa.update(idempotency_keys).where(open_key).values(held_until=0.0))


def require_undone(connection: sa.Connection, token: str | None) -> None:
    """Let the write of a token run once: to be called in its transaction, before anything is written.

    Raises:
        Conflict: the write was committed before, and only its answer was lost.
    """
    if token is None:
        return
    known = sa.select(idempotency_keys.c.done_seq).where(idempotency_keys.c.token == token)
    done = connection.execute(known).scalar_one_or_none()
    if done is not None:
        raise Conflict(f"The write of this Idempotency-Key was done at seq {done}; its answer was lost.")


def note_done(connection: sa.Connection, token: str | None, seq: int) -> None:
    """Say, in the write's own transaction, that it is done."""
    if token is not None:
        own = sa.update(idempotency_keys).where(idempotency_keys.c.token == token)
        connection.execute(own.values(done_seq=seq))


def _clear_expired(connection: sa.Connection, now: float) -> None:
    old = sa.select(idempotency_keys.c.key).where(idempotency_keys.c.expires_at <= now).limit(CLEARED_AT_ONCE)
    found = list(connection.execute(old).scalars())
    if found:
        connection.execute(sa.delete(idempotency_keys).where(idempotency_keys.c.key.in_(found)))
