"""What routers of the tasks receive beside the platform's dependencies."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends, Request

from app.api.deps import ServicesDep, add_timing
from app.errors import EngineUnavailable
from app.tasks.assemble import Tasks


async def get_tasks(services: ServicesDep) -> Tasks:
    """The loaded tasks. Raises EngineUnavailable where this process has none."""
    if services.tasks is None:
        raise EngineUnavailable("The stores are not open.", retry_after_s=5.0)
    return services.tasks


TasksDep = Annotated[Tasks, Depends(get_tasks)]


def tell_timings(request: Request, timings_ms: Mapping[str, float]) -> None:
    """Put a task's phases into `Server-Timing`; the middleware adds the total."""
    for name, duration_ms in timings_ms.items():
        if name != "total":
            add_timing(request, name, duration_ms)
