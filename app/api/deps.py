"""What endpoints depend on: the platform, the loaded services and tasks, and values and headers of the request."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from app.api.auth import ApiKeys
from app.api.schemas.wire import link
from app.domain import BundleInfo, Limits
from app.errors import LOAD_RETRY_AFTER_S, EngineUnavailable, Malformed, PreconditionRequired
from app.imaging.decoding import ImageDecoder, PixelBudget
from app.runtime.process import Deadline, Lifecycle, Phase
from app.runtime.telemetry import Telemetry
from app.stores.blobs import Blobs
from app.stores.index.follower import Indexes
from app.stores.records.class_sets import ClassSets
from app.stores.records.episodes import Episodes
from app.stores.records.exports import Exports
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

ANY_VERSION = range(1 << 62)
"""`If-Match: *`: any version, but the resource must exist."""
_TAG = re.compile(r'(?:W/)?"(?:(\d{1,18})|[^"]*)"')
_SEQ = re.compile(r"\d{1,18}")
_NO_VERSION = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The database and everything that is stored in it."""

    database: Database
    blobs: Blobs
    indexes: Indexes
    galleries: Galleries
    items: Items
    exports: Exports
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
        is_reachable: whether a shared database answers; where it is False, `/readyz` fails.
        tasks: None only in tests of routes that need none.
        on_start: awaited in order on the event loop after the load (warm-up, engine start).
        on_stop: awaited in order after the last response.
    """

    bundle: BundleInfo
    is_alive: Callable[[], bool]
    is_current: Callable[[], bool] = lambda: True
    is_reachable: Callable[[], Awaitable[bool]] | None = None
    tasks: Tasks | None = None
    on_start: Sequence[Callable[[], Awaitable[None]]] = ()
    on_stop: Sequence[Callable[[], Awaitable[None]]] = ()


@dataclass(slots=True, kw_only=True)
class Platform:
    """Everything that exists from the start, before any bundle is loaded.

    Attributes:
        deadline: the longest a request may take.
        live_slots: slots for live connections.
        live_greetings: slots for live connections that are not authenticated yet.
        wire: one thread that reads and writes large JSON: more would wait for each other's interpreter lock.
        services: None until the load succeeded.
    """

    lifecycle: Lifecycle
    telemetry: Telemetry
    limits: Limits
    keys: ApiKeys
    images: ImageDecoder
    deadline: Deadline
    live_slots: asyncio.Semaphore
    live_greetings: asyncio.Semaphore
    wire: ThreadPoolExecutor
    services: Services | None = None  # set once, by the supervisor


@dataclass(frozen=True, slots=True)
class Call:
    """What an endpoint needs to call a task for a request."""

    request: Request
    tasks: Tasks
    budget: PixelBudget

    @property
    def timeout_s(self) -> float:
        """Seconds left until the request's deadline."""
        return remaining_s_of(self.request)

    @property
    def token(self) -> str | None:
        """The token of an `Idempotency-Key`, from which generated ids derive; None without the header."""
        return getattr(self.request.state, "idempotency_token", None)

    def add_timings(self, timings_ms: Mapping[str, float]) -> None:
        """Report a task's phases in `Server-Timing`; the middleware adds the total."""
        self.request.state.timings.extend(item for item in timings_ms.items() if item[0] != "total")


# Dependencies are `async`, or FastAPI would run them in threads, and none depends on another: FastAPI solves a nested
# one again, even where its value is cached.


async def get_platform(connection: HTTPConnection) -> Platform:
    """The app's platform."""
    platform: Platform = connection.app.state.platform
    return platform


async def get_services(connection: HTTPConnection) -> Services:
    """The loaded services.

    Raises:
        EngineUnavailable: the bundle is still loading, or its load failed.
    """
    platform = await get_platform(connection)
    # A draining process still answers.
    if platform.lifecycle.phase is Phase.FAILED:
        raise EngineUnavailable("The service failed and is about to restart.", retry_after_s=LOAD_RETRY_AFTER_S)
    if platform.services is None or platform.lifecycle.phase is Phase.LOADING:
        raise EngineUnavailable("The bundle is still loading.", retry_after_s=LOAD_RETRY_AFTER_S)
    return platform.services


async def get_tasks(connection: HTTPConnection) -> Tasks:
    """The tasks. Raises EngineUnavailable where this process has none, and as `get_services`."""
    tasks = (await get_services(connection)).tasks
    if tasks is None:
        raise EngineUnavailable("The stores are not open.", retry_after_s=LOAD_RETRY_AFTER_S)
    return tasks


async def get_bundle(connection: HTTPConnection) -> BundleInfo:
    """The loaded bundle's description. Raises as `get_services`."""
    return (await get_services(connection)).bundle


async def get_limits(connection: HTTPConnection) -> Limits:
    """The limits of one request."""
    return (await get_platform(connection)).limits


async def get_call(request: Request) -> Call:
    """The call of a task. Raises as `get_tasks`."""
    return Call(request, await get_tasks(request), new_budget(await get_limits(request)))


async def read_if_match(request: Request) -> Sequence[int] | None:
    """The versions that `If-Match` allows; None where the header is absent.

    Weak tags match too: proxies that compress make strong tags weak.

    Raises:
        Malformed: the header is neither `*` nor a list of entity tags.
    """
    header = request.headers.get("if-match")
    if header is None:
        return None
    if header.strip() == "*":
        return ANY_VERSION
    versions: list[int] = []
    for tag in header.split(","):
        match = _TAG.fullmatch(tag.strip())
        if match is None:
            raise Malformed('If-Match must be "*" or a list of entity tags.')
        # A well-formed tag that no version has matches nothing; it is no error.
        versions.append(int(match[1] or _NO_VERSION))
    return versions


async def require_if_match(request: Request) -> Sequence[int] | None:
    """As `read_if_match`. Raises PreconditionRequired where the header is absent."""
    if "if-match" not in request.headers:
        raise PreconditionRequired("Send If-Match with the ETag of the version you change.")
    return await read_if_match(request)


async def wait_for_min_seq(request: Request) -> None:
    """Wait until this process has applied the write that `X-Min-Seq` names.

    Raises:
        Malformed: the header is not a number.
        Conflict, QueueFull, DeadlineExceeded: as `GalleryTask.wait_for`.
    """
    header = request.headers.get("x-min-seq")
    if header is None:
        return
    if not _SEQ.fullmatch(header):
        raise Malformed("X-Min-Seq must be a whole number.")
    tasks = await get_tasks(request)
    # The rest of the deadline is for the read itself.
    await tasks.galleries.wait_for(int(header), timeout_s=0.9 * remaining_s_of(request))


PlatformDep = Annotated[Platform, Depends(get_platform)]
TasksDep = Annotated[Tasks, Depends(get_tasks)]
CallDep = Annotated[Call, Depends(get_call)]
LimitsDep = Annotated[Limits, Depends(get_limits)]
BundleDep = Annotated[BundleInfo, Depends(get_bundle)]
IfMatchDep = Annotated[Sequence[int] | None, Depends(read_if_match)]
RequiredIfMatchDep = Annotated[Sequence[int] | None, Depends(require_if_match)]
MIN_SEQ = [Depends(wait_for_min_seq)]
"""Dependencies of routers whose routes read what earlier writes changed."""


def new_budget(limits: Limits) -> PixelBudget:
    """The pixels and images that one request may use; all its images share one budget."""
    return PixelBudget(max_pixels=limits.max_request_pixels, max_images=limits.max_request_images)


def remaining_s_of(request: Request) -> float:
    """Seconds left until this request's deadline, which the middleware set."""
    deadline_at_s: float = request.state.deadline_at_s  # of the loop's clock
    return max(0.0, deadline_at_s - asyncio.get_running_loop().time())


def image_link(connection: HTTPConnection, path: str) -> str:
    """As `link`, for an image: signed where keys are on, since an `<img>` sends none."""
    keys: ApiKeys = connection.app.state.platform.keys
    return link(connection, path + keys.sessions.signature(path) if keys.are_on else path)


def set_version(response: Response, version: int, *, seq: int | None = None, is_new: bool = False) -> None:
    """Add the headers of a versioned resource, `ETag` and, after a write, `X-Seq`; a new one is answered by 201."""
    response.headers["ETag"] = f'"{version}"'
    if seq is not None:
        response.headers["X-Seq"] = str(seq)
    if is_new:
        response.status_code = 201


def written(seq: int) -> Response:
    """The response 204 of a write."""
    return Response(status_code=204, headers={"X-Seq": str(seq)})
