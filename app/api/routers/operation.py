"""Operation: health, version, bundle, metrics, jobs, the catalogue of errors, and the OpenAPI document."""

from collections.abc import Mapping
from importlib.metadata import version as package_version
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field, JsonValue
from starlette.responses import FileResponse, HTMLResponse, JSONResponse

from app.api.auth import Scope, ScopedRoute, requires
from app.api.deps import BundleDep, Platform, PlatformDep, TasksDep, written
from app.api.problems import catalogue
from app.api.schemas.wire import JOB_PATTERN, link
from app.api.sessions import COOKIE, SESSION_S
from app.errors import LOAD_RETRY_AFTER_S, EngineUnavailable, NotFound
from app.runtime.process import Phase
from app.stores.records.jobs import JobState

router = APIRouter(tags=["operation"], route_class=ScopedRoute)
health = APIRouter(tags=["health"], route_class=ScopedRoute)
jobs = APIRouter(tags=["jobs"], route_class=ScopedRoute)
DOCS_FOLDER = FilePath(str(files("fastapi_swagger"))) / "resources"  # only its files are used
DOCS_FILES = {file.name: file for file in DOCS_FOLDER.glob("*.*") if file.suffix in (".js", ".css", ".png")}
# FastAPI's page has an inline script; nothing comes from elsewhere.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
JobPath = Annotated[str, Path(pattern=JOB_PATTERN, description="Id of a job.")]


class Health(BaseModel):
    """The phase of the process: `loading`, `ready`, `draining` or `failed`."""

    status: Phase


class Readiness(Health):
    """The phase, and what the loaded bundle offers: `training_free` features come from frozen models alone."""

    features: tuple[str, ...] = ()
    training_free: bool = False


class Version(BaseModel):
    """The release of the service, and of the libraries that affect its results."""

    name: str
    version: str
    libraries: Mapping[str, str]


class TaskView(BaseModel):
    """The settings of the bundle for one task; `features` are those by which it compares images, with weights."""

    resolution: int
    timestep: int
    templates: tuple[str, ...]
    features: Mapping[str, float]


class BundleView(BaseModel):
    """The loaded bundle; `manifest` is the content of its `bundle.json`.

    `dimension` is that of the features `semantic` and `dense`, `visual_dimension` that of `visual`; `training_free`
    features come from frozen models alone.
    """

    name: str
    fingerprint: str
    features: tuple[str, ...]
    training_free: bool = Field(validation_alias="is_training_free")
    dimension: int
    visual_dimension: int
    device: str
    dtype: str
    captioner: str
    tasks: Mapping[str, TaskView]
    manifest: Mapping[str, object]


class ErrorKind(BaseModel):
    """One entry of the catalogue of errors."""

    code: str
    status: int
    title: str


class JobReport(BaseModel):
    """The progress of a job, `done` of `total` steps; times in seconds since 1970."""

    id: str
    kind: str
    state: JobState
    done: int
    total: int
    report: dict[str, JsonValue]
    error: str | None
    created_at: float
    updated_at: float


@health.get("/livez")
@requires(Scope.OPEN)
async def livez(platform: PlatformDep) -> Health:
    """200 unless the process needs a restart: after a fatal error, or when queued requests make no progress."""
    # While it loads, the process is alive whatever the load takes.
    is_stuck = platform.services is not None and not platform.services.is_alive()
    if platform.lifecycle.phase is Phase.FAILED or is_stuck:
        raise EngineUnavailable("The service failed and must be restarted.")
    return Health(status=platform.lifecycle.phase)


@health.get("/startupz")
@requires(Scope.OPEN)
async def startupz(platform: PlatformDep) -> Health:
    """503 until the bundle is loaded and warmed up, then 200."""
    if platform.lifecycle.phase in (Phase.LOADING, Phase.FAILED):
        raise _not_ready(platform)
    return Health(status=platform.lifecycle.phase)


@health.get("/readyz")
# Aliases of common probes.
@health.get("/healthz", include_in_schema=False)
@health.get("/health", include_in_schema=False)
@requires(Scope.OPEN)
async def readyz(platform: PlatformDep, response: Response) -> Readiness:
    """200 while the service accepts requests: warmed up, indexes current, the database reachable, not draining.

    Overload is not unready.
    """
    if platform.lifecycle.phase is not Phase.READY:
        raise _not_ready(platform)
    response.headers["Cache-Control"] = "no-store"  # a cached "ready" would hide a drain
    services = platform.services
    if services is None:
        return Readiness(status=Phase.READY)
    if not services.is_current():
        raise EngineUnavailable("The indexes do not follow the change log.", retry_after_s=LOAD_RETRY_AFTER_S)
    if services.is_reachable is not None and not await services.is_reachable():
        raise EngineUnavailable("The database does not answer.", retry_after_s=LOAD_RETRY_AFTER_S)
    bundle = services.bundle
    return Readiness(status=Phase.READY, features=bundle.features, training_free=bundle.is_training_free)


@router.get("/version")
@requires(Scope.READ)
async def version() -> Version:
    """The release of the service, and of the libraries that affect its results."""
    libraries = {name: package_version(name) for name in ("torch", "diffusers", "transformers", "timm", "fastapi")}
    return Version(name="vermouth-perception", version=package_version("vermouth-perception"), libraries=libraries)


@router.get("/bundle")
@requires(Scope.READ)
async def bundle(found: BundleDep) -> BundleView:
    """Manifest, fingerprint, tasks and device of the loaded bundle."""
    return BundleView.model_validate(found, from_attributes=True)


@router.post("/session", status_code=204, summary="Exchange a key for a cookie")
@requires(Scope.READ)
async def open_session(request: Request, platform: PlatformDep) -> Response:
    """Set a cookie, for eight hours, that pages of the service and of allowed origins use in place of the key.

    Scripts cannot read it, and pages of other sites cannot use it. Where keys are off there is nothing to set.
    """
    response = Response(status_code=204, headers={"Cache-Control": "no-store"})
    if (session := platform.keys.new_session(request)) is not None:
        response.set_cookie(
            COOKIE,
            session,
            max_age=SESSION_S,
            path=link(request, "/"),
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
    return response


@router.get("/errors/{code}")
@requires(Scope.OPEN)
async def error_kind(code: str) -> ErrorKind:
    """The kind of error that the `type` of a problem names."""
    kind = catalogue().get(code)
    if kind is None:
        raise NotFound("There is no error of this code.")
    return ErrorKind(code=kind.code, status=kind.status, title=kind.title)


@router.get("/metrics", response_class=Response)
@requires(Scope.METRICS)
async def metrics(platform: PlatformDep) -> Response:
    """All metrics in the Prometheus text format."""
    telemetry, services = platform.telemetry, platform.services
    # Gauges are read now rather than updated by every write.
    telemetry.is_ready.set(platform.lifecycle.phase is Phase.READY)
    telemetry.index_vectors.clear()  # deleted galleries too
    if services is not None and services.tasks is not None:
        for gallery, count in services.tasks.galleries.vector_counts().items():
            telemetry.index_vectors.labels(gallery).set(count)
        telemetry.index_applied_seq.set(services.tasks.galleries.applied_seq)
        telemetry.index_left_out.set(services.tasks.stores.indexes.left_out)
        telemetry.index_lag.set(services.tasks.galleries.lag)
    return Response(telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", include_in_schema=False)
@requires(Scope.OPEN)
async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    state = request.app.state
    if not hasattr(state, "openapi_json"):  # written once: it takes milliseconds, and anyone may ask
        state.openapi_json = JSONResponse(request.app.openapi()).body
    prefix, body = link(request, ""), bytes(state.openapi_json)
    if prefix:
        body = b'{"servers":[{"url":"%b"}],%b' % (prefix.encode(), body[1:])  # a prefix holds nothing to escape
    return Response(body, media_type="application/json")


@router.get("/docs", include_in_schema=False)
@requires(Scope.OPEN)
async def docs() -> HTMLResponse:
    """The OpenAPI document as a page."""
    # Relative addresses work behind a proxy that adds a prefix.
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Vermouth",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon-32x32.png",
    )
    page.headers["Content-Security-Policy"] = DOCS_POLICY
    return page


@router.get("/docs/{name}", include_in_schema=False)
@requires(Scope.OPEN)
async def docs_asset(name: Annotated[str, Path(max_length=100)]) -> FileResponse:
    """A file of Swagger UI, from the package `fastapi-swagger`. Raises NotFound."""
    if name not in DOCS_FILES:
        raise NotFound("The reference has no such file.")
    return FileResponse(DOCS_FILES[name], headers={"Cache-Control": "no-cache"})


@jobs.get("/jobs/{job_id}", summary="Progress of a job")
@requires(Scope.READ)
async def get_job(tasks: TasksDep, job_id: JobPath) -> JobReport:
    """The state of a job, and its report once it has ended."""
    return JobReport.model_validate(await tasks.reembed.job(job_id), from_attributes=True)


@jobs.delete("/jobs/{job_id}", status_code=204, summary="Cancel or delete a job")
@requires(Scope.WRITE)
async def delete_job(tasks: TasksDep, job_id: JobPath) -> Response:
    """A running job stops at its next step, and its results stay unused."""
    return written(await tasks.reembed.delete_job(job_id))


def _not_ready(platform: Platform) -> EngineUnavailable:
    phase, stage = platform.lifecycle.phase, platform.lifecycle.stage
    now = f": {stage}" if stage and phase is Phase.LOADING else ""
    return EngineUnavailable(f"The service is {phase.value}{now}.", retry_after_s=LOAD_RETRY_AFTER_S)
