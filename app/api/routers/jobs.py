"""Long work: `GET|DELETE /jobs/{id}`."""

from typing import Annotated

from fastapi import Path, Response
from pydantic import BaseModel, JsonValue

from app.api.auth import Scope, requires
from app.api.deps import new_router
from app.api.schemas.wire import JOB_PATTERN
from app.api.task_deps import TasksDep
from app.stores.records.jobs import JobState

router = new_router("jobs")
JobPath = Annotated[str, Path(pattern=JOB_PATTERN, description="Id of a job.")]


class JobReport(BaseModel):
    """How far a job is: `done` of `total` steps; times in seconds since 1970."""

    id: str
    kind: str
    state: JobState
    done: int
    total: int
    report: dict[str, JsonValue]
    error: str | None
    created_at: float
    updated_at: float


@router.get("/jobs/{job_id}", response_model=JobReport, summary="Progress of long work")
@requires(Scope.READ)
async def get_job(tasks: TasksDep, job_id: JobPath) -> JobReport:
    """Its state, and its report once it has ended."""
    job = await tasks.reembed.job(job_id)
    return JobReport.model_validate(job, from_attributes=True)


@router.delete("/jobs/{job_id}", status_code=204, summary="Cancel or forget long work")
@requires(Scope.WRITE)
async def delete_job(tasks: TasksDep, job_id: JobPath) -> Response:
    """A running job is cancelled: it stops at its next step, and what it made stays unused."""
    seq = await tasks.reembed.delete_job(job_id)
    return Response(status_code=204, headers={"X-Seq": str(seq)})
