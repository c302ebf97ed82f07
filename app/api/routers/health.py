"""Is the process alive, started, ready? Open, cheap, and touching nothing shared."""

from fastapi import Response
from pydantic import BaseModel

from app.api.auth import Scope, requires
from app.api.deps import LOAD_RETRY_AFTER_S, Platform, PlatformDep, new_router
from app.errors import EngineUnavailable
from app.runtime.lifecycle import Phase

router = new_router("health")


class Health(BaseModel):
    """The phase of the process: `loading`, `ready`, `draining` or `failed`."""

    status: Phase


@router.get("/livez")
@requires(Scope.OPEN)
async def livez(platform: PlatformDep) -> Health:
    """200 unless the process is beyond help: a fatal error, or work waits and nothing moves."""
    is_stuck = platform.services is not None and not platform.services.is_alive()
    if platform.lifecycle.phase is Phase.FAILED or is_stuck:
        raise EngineUnavailable("The service failed and must be restarted.")
    return Health(status=platform.lifecycle.phase)


@router.get("/startupz")
@requires(Scope.OPEN)
async def startupz(platform: PlatformDep) -> Health:
    """503 while the bundle loads and warms up, 200 from then on."""
    if platform.lifecycle.phase in (Phase.LOADING, Phase.FAILED):
        raise _not_ready(platform)
    return Health(status=platform.lifecycle.phase)


@router.get("/readyz")
@router.get("/healthz", include_in_schema=False)
@router.get("/health", include_in_schema=False)
@requires(Scope.OPEN)
async def readyz(platform: PlatformDep, response: Response) -> Health:
    """200 when warm, with its stores, and not draining. Overload does not make it unready."""
    if platform.lifecycle.phase is not Phase.READY:
        raise _not_ready(platform)
    if platform.services is not None and not platform.services.is_current():
        raise EngineUnavailable("The stores do not follow what is written.", retry_after_s=LOAD_RETRY_AFTER_S)
    response.headers["Cache-Control"] = "no-store"
    return Health(status=Phase.READY)


def _not_ready(platform: Platform) -> EngineUnavailable:
    return EngineUnavailable(f"The service is {platform.lifecycle.phase.value}.", retry_after_s=LOAD_RETRY_AFTER_S)
