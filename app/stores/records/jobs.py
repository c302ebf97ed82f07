"""Long-running jobs and their progress; any process that shares the database can query or cancel them."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from app.errors import NotFound
from app.stores.sql.database import Database
from app.stores.sql.tables import jobs

STALE_S = 3600.0  # a job without progress for this long has lost its process


class JobState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job: `done` of `total` steps; times in seconds since 1970."""

    id: str
    kind: str
    state: JobState
    done: int
    total: int
    report: Mapping[str, object]
    error: str | None
    created_at: float
    updated_at: float


class Jobs:
    """All jobs; every method blocks, call them through `Database.run`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def end_abandoned(self) -> None:
        """At start, mark the jobs of a killed process as failed: all that run, or on a shared database stale ones."""
        with self._database.write() as connection:
            _end(connection, time.time() - (STALE_S if self._database.is_shared else 0.0))

    def begin(self, kind: str, total: int) -> Job:
        """Create a running job; stale ones are marked as failed."""
        now = time.time()
        row = {"id": f"job_{secrets.token_hex(12)}", "kind": kind, "state": JobState.RUNNING.value}
        counts = {"done": 0, "total": total, "report": {}, "created_at": now, "updated_at": now}
        with self._database.write() as connection:
            _end(connection, now - STALE_S)
            connection.execute(sa.insert(jobs), {**row, **counts})
        return self.get(row["id"])

    def advance(self, job_id: str, done: int) -> bool:
        """Record progress; returns False if the job was cancelled or deleted, and its work should stop."""
        with self._database.write() as connection:
            change = sa.update(jobs).where(jobs.c.id == job_id).values(done=done, updated_at=time.time())
            state = connection.execute(change.returning(jobs.c.state)).scalar_one_or_none()
        return bool(state == JobState.RUNNING)  # None: deleted

    def finish(self, job_id: str, *, report: Mapping[str, object], error: str | None = None) -> None:
        """Mark a running job as succeeded, or as failed with an error."""
        state = JobState.FAILED if error else JobState.SUCCEEDED
        # Only while it runs: a cancelled job stays cancelled.
        running = sa.and_(jobs.c.id == job_id, jobs.c.state == JobState.RUNNING.value)
        values = {"state": state.value, "report": dict(report), "error": error, "updated_at": time.time()}
        with self._database.write() as connection:
            connection.execute(sa.update(jobs).where(running).values(values))

    def get(self, job_id: str) -> Job:
        """Return one job. Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()
        if row is None:
            raise NotFound(f"There is no job {job_id!r}.")
        return Job(**{**row, "state": JobState(row["state"])})

    def delete(self, job_id: str) -> None:
        """Cancel a running job, or delete one that ended. Raises NotFound."""
        with self._database.write() as connection:
            state = connection.execute(sa.select(jobs.c.state).where(jobs.c.id == job_id)).scalar_one_or_none()
            if state is None:
                raise NotFound(f"There is no job {job_id!r}.")
            if state == JobState.RUNNING.value:
                change = sa.update(jobs).where(jobs.c.id == job_id)
                connection.execute(change.values(state=JobState.CANCELLED.value, updated_at=time.time()))
            else:
                connection.execute(sa.delete(jobs).where(jobs.c.id == job_id))


def _end(connection: sa.Connection, before: float) -> None:
    """Mark running jobs whose last progress was before a time as failed."""
    stale = sa.and_(jobs.c.state == JobState.RUNNING.value, jobs.c.updated_at <= before)
    ended = {"state": JobState.FAILED.value, "error": "The process ended.", "updated_at": time.time()}
    connection.execute(sa.update(jobs).where(stale).values(ended))
