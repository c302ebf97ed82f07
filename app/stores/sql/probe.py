"""Asks a shared database whether it answers, apart from the pool: a pool whose connections hang says nothing."""

import asyncio
import threading
import time
from concurrent.futures import Future

import sqlalchemy as sa

from app.stores.sql.engines import probe_engine

FRESH_S = 0.5  # an answer is good for this long, however often it is asked for
ANSWER_S = 1.0  # longest that a sound database takes; with FRESH_S, one that left is noticed within two seconds


class Probe:
    """One connection and one thread at a time; a query is sent when somebody asks, at most two a second.

    A question that hangs keeps its thread until the database answers or the system gives the connection up; until
    then every other question is answered without one.
    """

    def __init__(self, url: str | sa.URL) -> None:
        self._engine = probe_engine(url)
        self._connection: sa.Connection | None = None
        self._asked: Future[bool] | None = None
        self._asked_at_s = 0.0

    async def answers(self) -> bool:
        """Whether the database answers now; takes a second at most. Called from the event loop alone."""
        asked = self._asked
        if asked is None or (asked.done() and time.monotonic() - self._asked_at_s > FRESH_S):
            self._asked_at_s = time.monotonic()
            asked = self._asked = Future()
            # A daemon, which a process that ends does not wait for.
            threading.Thread(target=self._answer, args=(asked,), name="store-probe", daemon=True).start()
        try:
            # Shielded: the question is shared, and the next caller may still get its answer.
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(asked)), ANSWER_S)
        except TimeoutError:
            return False

    def _answer(self, asked: Future[bool]) -> None:
        asked.set_result(self._ask())

    def _ask(self) -> bool:
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            self._connection.exec_driver_sql("SELECT 1")
            self._connection.rollback()
        except Exception:  # noqa: BLE001  # whatever it is, the database does not answer
            self._drop()
            return False
        return True

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()
