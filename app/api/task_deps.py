"""What routers of the tasks receive beside the platform's dependencies."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from app.api.deps import add_timing, services_of
from app.errors import EngineUnavailable
from app.tasks.assemble import Tasks


def tasks_of(connection: HTTPConnection) -> Tasks:
    """The loaded tasks. Raises EngineUnavailable where this process has none, and as `services_of`."""
    tasks = services_of(connection).tasks
    if tasks is None:
        raise EngineUnavailable("The stores are not open.", retry_after_s=5.0)
    return tasks


async def get_tasks(connection: HTTPConnection) -> Tasks:
    """As `tasks_of`."""
    return tasks_of(connection)


TasksDep = Annotated[Tasks, Depends(get_tasks)]


def tell_timings(request: Request, timings_ms: Mapping[str, float]) -> None:
    """Put a task's phases into `Server-Timing`; the middleware adds the total."""
    for name, duration_ms in timings_ms.items():
        if name != "total":
            add_timing(request, name, duration_ms)
