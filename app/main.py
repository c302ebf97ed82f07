"""The app: middleware, routers, and the load that runs behind the first health answers."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from fastapi.routing import APIWebSocketRoute, iter_route_contexts
from starlette.middleware import Middleware

from app.api import openapi as contract
from app.api import problems
from app.api.auth import ApiKey, ApiKeys, Scope, ScopedRoute, declared_scope, parse_keys, sha256_hex
from app.api.deps import Platform
from app.api.middleware.cancellation import DisconnectWatch, RequestDeadline
from app.api.middleware.context import RequestContext
from app.api.middleware.guards import BodyLimit, InFlightLimit, PathGuard
from app.api.routers import (
    class_sets,
    fewshot,
    galleries,
    health,
    items,
    jobs,
    live,
    operation,
    retrieval,
    segmentation,
)
from app.api.services import Services
from app.composition import build_services as build_default_services
from app.imaging.decoding import ImageCache, ImageDecoder
from app.imaging.processes import DecoderProcesses
from app.runtime.lifecycle import EXIT_START_FAILED, Lifecycle, Phase
from app.runtime.telemetry import Telemetry, get_logger
from app.settings import Settings

MAX_GREETINGS = 64
BuildServices = Callable[[Settings, Platform], Services]
ROUTERS = (
    retrieval.router,
    segmentation.router,
    fewshot.router,
    live.router,
    galleries.router,
    items.router,
    class_sets.router,
    jobs.router,
    operation.router,
    health.router,
)
"""A request tries one after another: those that are asked most come first."""


def create_app(settings: Settings, build_services: BuildServices = build_default_services) -> FastAPI:
    """The service as an ASGI app; its lifespan starts the load and returns at once.

    Args:
        settings: read here and nowhere below.
        build_services: the slow part of the start; runs in a thread of its own.

    Returns:
        The app; `app.state.platform` holds what exists from the first moment.

    Raises:
        ValueError: the API keys are malformed, or a route declares no scope.
        OSError: the file of API keys cannot be read.
    """
    platform = _build_platform(settings)
    supervisor = Supervisor(settings, platform, build_services)
    app = FastAPI(
        title="Vermouth",
        summary="Sketch retrieval, open-vocabulary segmentation and few-shot classification from one frozen pass.",
        version="0.1.0",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=supervisor.lifespan,
        middleware=[
            Middleware(RequestContext, telemetry=platform.telemetry),
            Middleware(PathGuard),
            Middleware(InFlightLimit, max_in_flight=settings.max_in_flight, telemetry=platform.telemetry),
            Middleware(RequestDeadline, deadline_s=settings.deadline_s),
            Middleware(BodyLimit, max_body_bytes=settings.limits.max_body_bytes),
            Middleware(DisconnectWatch),
        ],
    )
    app.state.platform = platform
    app.state.supervisor = supervisor
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    check_scopes(app)
    contract.install(app)
    return app


def check_scopes(app: FastAPI) -> None:
    """Refuse an app with a route that no key guards; each declares a scope, and is of the kind that checks it.

    Raises:
        ValueError: naming the first such route.
    """
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        # A socket's endpoint checks the key itself: it may come in the first message.
        if not isinstance(route, ScopedRoute | APIWebSocketRoute) or declared_scope(route) is None:
            raise ValueError(f"the route {context.path} declares no scope, or is not checked for it")


class Supervisor:
    """Loads in a daemon thread, starts the services on the loop, stops them in the end."""

    def __init__(self, settings: Settings, platform: Platform, build_services: BuildServices) -> None:
        self._settings = settings
        self._platform = platform
        self._build_services = build_services
        self._settled = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start the load and return; stop all services at the end."""
        del app
        self._platform.images.start()
        loop = asyncio.get_running_loop()
        # A daemon thread: a SIGTERM must not wait for a load that takes minutes.
        threading.Thread(target=self._load, args=(loop,), name="load", daemon=True).start()
        try:
            yield
        finally:
            await self._stop()

    async def settled(self) -> Phase:
        """Wait until the load succeeded or failed, and tell which."""
        await self._settled.wait()
        return self._platform.lifecycle.phase

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            services = self._build_services(self._settings, self._platform)
        except BaseException as err:  # noqa: BLE001 - whatever ends the load must end the process
            self._report(loop, self._fail, err)
        else:
            self._report(loop, self._begin_start, services)

    def _report(self, loop: asyncio.AbstractEventLoop, call: Callable[..., None], argument: object) -> None:
        # The loop is closed when the process is already on its way out.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(call, argument)

    def _begin_start(self, services: Services) -> None:
        self._platform.services = services
        self._starting = asyncio.get_running_loop().create_task(self._start(services))

    async def _start(self, services: Services) -> None:
        try:
            for start in services.on_start:
                await start()
        except Exception as err:  # noqa: BLE001 - as above
            self._fail(err)
            return
        telemetry = self._platform.telemetry
        telemetry.bundle_info.labels(services.bundle.name, services.bundle.fingerprint).set(1)
        self._platform.lifecycle.ready()
        get_logger().info("ready", bundle=services.bundle.name, fingerprint=services.bundle.fingerprint)
        self._settled.set()

    def _fail(self, error: BaseException) -> None:
        get_logger().error("start_failed", error=str(error), exc_info=error)
        # Who was told to end while loading ends in peace, whatever becomes of the load.
        if self._platform.lifecycle.phase is not Phase.DRAINING:
            self._platform.lifecycle.fail(EXIT_START_FAILED)
        self._settled.set()

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        services = self._platform.services
        for stop in services.on_stop if services is not None else ():
            try:
                await stop()
            except Exception:  # noqa: BLE001 - one failed stop must not keep the others from theirs
                get_logger().exception("stop_failed")
        await asyncio.to_thread(self._platform.images.stop)


def _build_platform(settings: Settings) -> Platform:
    telemetry = Telemetry()
    cache = ImageCache(max_bytes=settings.picture_cache_bytes)
    telemetry.image_cache_bytes.set_function(lambda: cache.size_bytes)
    workers = settings.decode_threads
    processes = DecoderProcesses(workers, limits=settings.limits) if workers > 1 else None
    return Platform(
        lifecycle=Lifecycle(),
        telemetry=telemetry,
        limits=settings.limits,
        keys=ApiKeys(read_keys(settings)),
        images=ImageDecoder(
            limits=settings.limits,
            telemetry=telemetry,
            cache=cache,
            workers=workers,
            max_waiting=settings.max_decode_waiting,
            processes=processes,
        ),
        deadline_s=settings.deadline_s,
        live_slots=asyncio.Semaphore(settings.max_live_connections),
        live_greetings=asyncio.Semaphore(MAX_GREETINGS),
    )


def read_keys(settings: Settings) -> list[ApiKey]:
    """All keys of the settings: in the environment, in the secret file, and the metrics token.

    Raises:
        ValueError: an entry is malformed.
        OSError: the file cannot be read.
    """
    keys: list[ApiKey] = []
    if settings.api_keys is not None:
        keys += parse_keys(settings.api_keys.get_secret_value())
    if settings.api_keys_file is not None:
        keys += parse_keys(settings.api_keys_file.read_text(encoding="utf-8"))
    if settings.metrics_token is not None:
        digest = sha256_hex(settings.metrics_token.get_secret_value())
        keys.append(ApiKey(name="metrics", sha256=digest, scopes=frozenset({Scope.METRICS})))
    return keys
