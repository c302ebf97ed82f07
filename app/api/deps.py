"""What endpoints depend on: the platform, the loaded services and tasks, and values of the request."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, params
from starlette.requests import HTTPConnection, Request

from app.api.auth import ApiKeys, ScopedRoute
from app.domain import BundleInfo, Limits
from app.errors import EngineUnavailable
from app.imaging.decoding import ImageDecoder
from app.imaging.sources import PixelBudget
from app.runtime.lifecycle import Lifecycle, Phase
from app.runtime.telemetry import Telemetry
from app.stores.blobs import Blobs
from app.stores.index.follower import Indexes
from app.stores.records.class_sets import ClassSets
from app.stores.records.episodes import Episodes
from app.stores.records.galleries import Galleries
from app.stores.records.idempotency import IdempotencyKeys
from app.stores.records.items import Items
from app.stores.records.jobs import Jobs
from app.stores.sql.database import Database
from app.tasks.fewshot import FewShot
from app.tasks.galleries import GalleryTask
from app.tasks.items import ItemTask
from app.tasks.reembed import Reembed
from app.tasks.retrieval import Retrieval
from app.tasks.segmentation import Segmentation

LOAD_RETRY_AFTER_S = 5.0  # a load takes seconds on a small bundle, minutes on a large one


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The database and everything that is stored in it."""

    database: Database
    blobs: Blobs
    indexes: Indexes
    galleries: Galleries
    items: Items
    episodes: Episodes
    class_sets: ClassSets
    idempotency_keys: IdempotencyKeys
    jobs: Jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """What routers call; `close` ends the pools and releases the data folder.

    Attributes:
        stores: what the tasks are built on, for tests and maintenance; routers never use it.
    """

    stores: Stores
    galleries: GalleryTask
    items: ItemTask
    retrieval: Retrieval
    segmentation: Segmentation
    fewshot: FewShot
    reembed: Reembed
    idempotency: IdempotencyKeys
    close: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that exists only after the load.

    Attributes:
        is_alive: whether the device makes progress; where it is False, `/livez` fails.
        is_current: whether the indexes follow the change log; where it is False, `/readyz` fails.
        tasks: None only in tests of routes that need none.
        on_start: awaited in order on the event loop after the load (warm-up, engine start).
        on_stop: awaited in order after the last response.
    """

    bundle: BundleInfo
    is_alive: Callable[[], bool]
    is_current: Callable[[], bool] = lambda: True
    tasks: Tasks | None = None
    on_start: Sequence[Callable[[], Awaitable[None]]] = ()
    on_stop: Sequence[Callable[[], Awaitable[None]]] = ()


@dataclass(slots=True, kw_only=True)
class Platform:
    """Everything that exists from the start, before any bundle is loaded.

    Attributes:
        deadline_s: the longest a request may take.
        live_slots: slots for live connections.
        live_greetings: slots for live connections that are not authenticated yet.
        services: None until the load succeeded.
    """

    lifecycle: Lifecycle
    telemetry: Telemetry
    limits: Limits
    keys: ApiKeys
    images: ImageDecoder
    deadline_s: float
    live_slots: asyncio.Semaphore
    live_greetings: asyncio.Semaphore
    services: Services | None = None  # set once, by the supervisor


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
        EngineUnavailable: the bundle is still loading, or its load failed.
    """
    platform = platform_of(connection)
    # A draining process still answers.
    if platform.lifecycle.phase is Phase.FAILED:
        raise EngineUnavailable("The service failed and is about to restart.", retry_after_s=LOAD_RETRY_AFTER_S)
    if platform.services is None or platform.lifecycle.phase is Phase.LOADING:
        raise EngineUnavailable("The bundle is still loading.", retry_after_s=LOAD_RETRY_AFTER_S)
    return platform.services


def tasks_of(connection: HTTPConnection) -> Tasks:
    """The tasks. Raises EngineUnavailable where this process has none, and as `services_of`."""
    tasks = services_of(connection).tasks
    if tasks is None:
        raise EngineUnavailable("The stores are not open.", retry_after_s=LOAD_RETRY_AFTER_S)
    return tasks


def remaining_s_of(request: Request) -> float:
    """Seconds left until this request's deadline, which the middleware set."""
    deadline: float = request.state.deadline_at_s  # of the loop's clock
    return max(0.0, deadline - asyncio.get_running_loop().time())


def add_timings(request: Request, timings_ms: Mapping[str, float]) -> None:
    """Report a task's phases in `Server-Timing`; the middleware adds the total."""
    request.state.timings.extend(item for item in timings_ms.items() if item[0] != "total")


# No dependency below depends on another: FastAPI solves a nested one again, even where its value is cached.


async def get_platform(connection: HTTPConnection) -> Platform:
    """As `platform_of`."""
    return platform_of(connection)


async def get_tasks(connection: HTTPConnection) -> Tasks:
    """As `tasks_of`."""
    return tasks_of(connection)


async def get_limits(connection: HTTPConnection) -> Limits:
    """The limits of one request."""
    return platform_of(connection).limits


async def get_pixel_budget(connection: HTTPConnection) -> PixelBudget:
    """The pixels and images that this request may still use; all its images share one budget."""
    limits = platform_of(connection).limits
    return PixelBudget(max_pixels=limits.max_request_pixels, max_images=limits.max_request_images)


async def get_bundle(connection: HTTPConnection) -> BundleInfo:
    """The loaded bundle's description. Raises as `services_of`."""
    return services_of(connection).bundle


async def get_remaining_s(request: Request) -> float:
    """As `remaining_s_of`."""
    return remaining_s_of(request)


PlatformDep = Annotated[Platform, Depends(get_platform)]
TasksDep = Annotated[Tasks, Depends(get_tasks)]
LimitsDep = Annotated[Limits, Depends(get_limits)]
PixelBudgetDep = Annotated[PixelBudget, Depends(get_pixel_budget)]
BundleDep = Annotated[BundleInfo, Depends(get_bundle)]
RemainingDep = Annotated[float, Depends(get_remaining_s)]
