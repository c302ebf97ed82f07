"""The ASGI app, its middleware and routers, and the supervisor of the load."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial

from fastapi import FastAPI
from fastapi.routing import APIWebSocketRoute, iter_route_contexts
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from app.api import openapi as contract
from app.api import problems
from app.api.auth import ScopedRoute, declared_scope
from app.api.bodies import BodyLimit
from app.api.deps import Platform, Services
from app.api.in_flight import InFlightLimit
from app.api.middleware import DisconnectWatch, HeadersOnly, PathGuard, RequestContext, RequestDeadline
from app.api.routers import class_sets, fewshot, galleries, items, live, operation, playground, retrieval, segmentation
from app.composition import build_platform
from app.composition import build_services as build_default_services
from app.errors import ServiceError
from app.runtime.process import EXIT_START_FAILED, Phase
from app.runtime.telemetry import get_logger
from app.settings import Settings
from app.stores.sql.database import DataFolderLocked
from app.stores.sql.engines import UnusableDatabase
from models.errors import ModelError

EXPOSED_HEADERS = ("X-Seq", "ETag", "Location", "Retry-After", "X-Request-ID", "Server-Timing")
"""Of responses, to scripts of pages of other origins."""
BuildServices = Callable[[Settings, Platform], Services]
ROUTERS = (
    retrieval.router,
    segmentation.router,
    fewshot.router,
    live.router,
    galleries.router,
    items.router,
    class_sets.router,
    operation.jobs,
    operation.router,
    operation.health,
)
"""Starlette matches routes in this order: those with the most requests come first."""


def create_app(settings: Settings, build_services: BuildServices = build_default_services) -> FastAPI:
    """The service as an ASGI app, whose lifespan starts the load and returns at once.

    Args:
        settings: read by the composition root; no lower layer sees them.
        build_services: loads the bundle and opens the stores, in a thread of its own.

    Returns:
        The app; `app.state.platform` is its platform, `app.state.supervisor` the supervisor of its load.

    Raises:
        ValueError: the API keys are malformed, or a route declares no scope.
        OSError: the file of API keys cannot be read.
    """
    platform = build_platform(settings)
    supervisor = Supervisor(settings, platform, build_services)
    app = FastAPI(
        title="Vermouth",
        summary="Sketch retrieval, open-vocabulary segmentation and few-shot classification from one frozen pass.",
        version="0.1.0",
        openapi_url=None,  # served by a router that declares a scope
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # every resource has one path
        generate_unique_id_function=lambda route: route.name,  # names of functions in generated clients
        lifespan=supervisor.lifespan,
        middleware=[
            *_cors(platform.keys.sessions.allowed_origins),
            Middleware(RequestContext, telemetry=platform.telemetry),
            Middleware(HeadersOnly),
            Middleware(PathGuard),
            Middleware(BodyLimit, max_body_bytes=settings.limits.max_body_bytes),
            Middleware(
                InFlightLimit, max_in_flight=settings.max_in_flight, keys=platform.keys, telemetry=platform.telemetry
            ),
            Middleware(RequestDeadline, deadline=platform.deadline),
            Middleware(DisconnectWatch),
        ],
    )
    app.state.platform = platform
    app.state.supervisor = supervisor
    problems.install(app)
    for router in (*ROUTERS, *([playground.router] if settings.playground else [])):
        app.include_router(router)
    check_scopes(app)
    contract.install(app)
    return app


def _cors(allowed_origins: frozenset[str]) -> list[Middleware]:
    """The layer that lets pages of these origins read answers, errors among them; outermost, as errors are made inside.

    A preflight passes without a key. Pages may use a session's cookie, unless all origins are allowed.
    """
    if not allowed_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=allowed_origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            allow_credentials="*" not in allowed_origins,
            expose_headers=EXPOSED_HEADERS,
        )
    ]


def check_scopes(app: FastAPI) -> None:
    """Refuse an app with an unguarded route: every route must declare a scope and be of a class that checks it.

    Raises:
        ValueError: names the first such route.
    """
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        # A WebSocket's endpoint checks the key itself: the key may come in the first message.
        if not isinstance(route, ScopedRoute | APIWebSocketRoute) or declared_scope(route) is None:
            raise ValueError(f"the route {context.path} is unguarded: use @requires on a ScopedRoute")


class Supervisor:
    """Loads the services in a daemon thread, starts them on the event loop, and stops them at the end."""

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
        # A daemon thread, so that a SIGTERM does not wait for a load that takes minutes.
        threading.Thread(target=self._load, args=(loop,), name="load", daemon=True).start()
        try:
            yield
        finally:
            await self._stop()

    async def settled(self) -> Phase:
        """Wait until the load has succeeded or failed, and return the phase then."""
        await self._settled.wait()
        return self._platform.lifecycle.phase

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        report: Callable[[], None]
        try:
            report = partial(self._begin_start, self._build_services(self._settings, self._platform))
        except BaseException as err:  # noqa: BLE001 - a load that fails for any reason must end the process
            report = partial(self._fail, err)
        # The loop is closed where the process stopped during the load.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(report)

    def _begin_start(self, services: Services) -> None:
        self._platform.services = services
        self._starting = asyncio.get_running_loop().create_task(self._start(services))

    async def _start(self, services: Services) -> None:
        try:
            for start in services.on_start:
                await start()
        except Exception as err:  # noqa: BLE001 - as in _load
            self._fail(err)
            return
        bundle = services.bundle
        self._platform.telemetry.bundle_info.labels(bundle.name, bundle.fingerprint).set(1)
        self._platform.lifecycle.ready()
        get_logger().info(
            "ready",
            bundle=bundle.name,
            fingerprint=bundle.fingerprint,
            features=bundle.features,
            training_free=bundle.is_training_free,
        )
        self._settled.set()

    def _fail(self, error: BaseException) -> None:
        get_logger().error("start_failed", error=str(error), exc_info=error)
        # A shutdown requested during loading always exits cleanly.
        if self._platform.lifecycle.phase is not Phase.DRAINING:
            self._platform.lifecycle.fail(EXIT_START_FAILED, _sentence(error))
        self._settled.set()

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        services = self._platform.services
        for stop in services.on_stop if services is not None else ():
            try:
                await stop()
            except Exception:  # noqa: BLE001 - one service that fails to stop must not prevent the others
                get_logger().exception("stop_failed")
        self._platform.wire.shutdown(wait=False, cancel_futures=True)
        await self._platform.images.stop()


def _sentence(error: BaseException) -> str:
    """Why the load failed, in one line. Errors of ours say what to do."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, ModelError | ServiceError | DataFolderLocked | UnusableDatabase):
        return str(error)
    return f"{type(error).__name__}: {error}. Its traceback is above."
