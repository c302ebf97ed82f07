"""What endpoints receive: the platform, the services and what the request says of itself."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, params
from starlette.datastructures import FormData
from starlette.requests import HTTPConnection, Request

from app.api.auth import ApiKeys, ScopedRoute
from app.api.services import Services
from app.domain import BundleInfo, Limits
from app.errors import EngineUnavailable, UnsupportedMedia
from app.imaging.decoding import ImageDecoder
from app.imaging.sources import PixelBudget
from app.runtime.lifecycle import Lifecycle, Phase
from app.runtime.telemetry import Telemetry

LOAD_RETRY_AFTER_S = 5.0


@dataclass(slots=True, kw_only=True)
class Platform:
    """What exists from the first moment, before any bundle is loaded.

    Attributes:
        services: None until the load is done.
        deadline_s: the longest a request may take.
        live_slots: places for connections that search while someone draws.
        live_greetings: places for those that have not said yet who they are.
    """

    lifecycle: Lifecycle
    telemetry: Telemetry
    limits: Limits
    keys: ApiKeys
    images: ImageDecoder
    deadline_s: float
    live_slots: asyncio.Semaphore
    live_greetings: asyncio.Semaphore
    services: Services | None = None


def new_router(
    tag: str, *, route_class: type[ScopedRoute] = ScopedRoute, dependencies: Sequence[params.Depends] = ()
) -> APIRouter:
    """A router whose routes check their declared scope before they read the body."""
    return APIRouter(tags=[tag], route_class=route_class, dependencies=[*dependencies])


def platform_of(connection: HTTPConnection) -> Platform:
    """The app's platform."""
    platform: Platform = connection.app.state.platform
    return platform


def services_of(connection: HTTPConnection) -> Services:
    """The loaded services.

    Raises:
        EngineUnavailable: still loading, or the load failed.
    """
    platform = platform_of(connection)
    if platform.lifecycle.phase is Phase.FAILED:
        raise EngineUnavailable("The service failed and is about to restart.", retry_after_s=LOAD_RETRY_AFTER_S)
    if platform.services is None or platform.lifecycle.phase is Phase.LOADING:
        raise EngineUnavailable("The bundle is still loading.", retry_after_s=LOAD_RETRY_AFTER_S)
    return platform.services


def remaining_s_of(request: Request) -> float:
    """Seconds left until this request's deadline, as the middleware set it."""
    deadline: float = request.state.deadline_at_s
    return max(0.0, deadline - asyncio.get_running_loop().time())


# None of these depends on another: FastAPI would solve that one anew wherever it stands, though its answer is at hand.


async def get_platform(connection: HTTPConnection) -> Platform:
    """As `platform_of`."""
    return platform_of(connection)


async def get_limits(connection: HTTPConnection) -> Limits:
    """The bounds of one request."""
    return platform_of(connection).limits


async def get_pixel_budget(connection: HTTPConnection) -> PixelBudget:
    """A fresh count of pixels and images for this request; one is shared within a request."""
    limits = platform_of(connection).limits
    return PixelBudget(max_pixels=limits.max_request_pixels, max_images=limits.max_request_images)


async def get_bundle(connection: HTTPConnection) -> BundleInfo:
    """What the loaded bundle says of itself. Raises as `services_of`."""
    return services_of(connection).bundle


async def get_remaining_s(request: Request) -> float:
    """As `remaining_s_of`."""
    return remaining_s_of(request)


PlatformDep = Annotated[Platform, Depends(get_platform)]
LimitsDep = Annotated[Limits, Depends(get_limits)]
PixelBudgetDep = Annotated[PixelBudget, Depends(get_pixel_budget)]
BundleDep = Annotated[BundleInfo, Depends(get_bundle)]
RemainingDep = Annotated[float, Depends(get_remaining_s)]


def content_type(request: Request) -> str:
    """The media type of the body in lower case, without parameters; empty when absent."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_content_type(request: Request, *allowed: str) -> str:
    """The body's media type, one of `allowed`.

    Raises:
        UnsupportedMedia: it is another.
    """
    found = content_type(request)
    if found not in allowed:
        raise UnsupportedMedia(f"The content type must be one of {', '.join(allowed)}.")
    return found


async def read_form(request: Request, limits: Limits) -> FormData:
    """A multipart body under our limits; the parser's own defaults are lower.

    Raises:
        starlette.exceptions.HTTPException: 400, the body is malformed or has too many parts.
    """
    return await request.form(
        max_files=limits.max_form_parts,
        max_fields=limits.max_form_parts,
        max_part_size=limits.max_form_field_bytes,
    )


def add_timing(request: Request, name: str, duration_ms: float) -> None:
    """Tell a phase's duration in `Server-Timing`; `name` is a token such as `inference`."""
    request.state.timings.append((name, duration_ms))
