"""What runs here: version, bundle, metrics, the catalogue of errors, and the contract itself."""

from collections.abc import Mapping
from importlib.metadata import version as package_version

from fastapi import Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import HTMLResponse, JSONResponse

from app.api.auth import Scope, requires
from app.api.deps import BundleDep, PlatformDep, new_router
from app.api.problems import catalogue
from app.errors import NotFound
from app.runtime.lifecycle import Phase

router = new_router("operation")


class Version(BaseModel):
    """The service's release and those of the libraries that shape its numbers."""

    name: str
    version: str
    libraries: Mapping[str, str]


class TaskView(BaseModel):
    """How the bundle serves one task."""

    resolution: int
    timestep: int
    templates: tuple[str, ...]


class BundleView(BaseModel):
    """The loaded bundle; `manifest` is its `bundle.json`."""

    name: str
    fingerprint: str
    dimension: int
    device: str
    dtype: str
    captioner: str
    tasks: Mapping[str, TaskView]
    manifest: Mapping[str, object]


class ErrorKind(BaseModel):
    """One row of the catalogue of errors."""

    code: str
    status: int
    title: str


@router.get("/version")
@requires(Scope.READ)
async def version() -> Version:
    """Release of the service and of the libraries under it."""
    libraries = {name: package_version(name) for name in ("torch", "diffusers", "transformers", "timm", "fastapi")}
    return Version(name="vermouth-perception", version=package_version("vermouth-perception"), libraries=libraries)


@router.get("/bundle")
@requires(Scope.READ)
async def bundle(found: BundleDep) -> BundleView:
    """Manifest, fingerprint, tasks and device of the loaded bundle."""
    tasks = {
        name: TaskView(resolution=task.resolution, timestep=task.timestep, templates=task.templates)
        for name, task in found.tasks.items()
    }
    return BundleView(
        name=found.name,
        fingerprint=found.fingerprint,
        dimension=found.dimension,
        device=found.device,
        dtype=found.dtype,
        captioner=found.captioner,
        tasks=tasks,
        manifest=found.manifest,
    )


@router.get("/errors/{code}")
@requires(Scope.OPEN)
async def error_kind(code: str) -> ErrorKind:
    """What stands behind the `type` of a problem."""
    kind = catalogue().get(code)
    if kind is None:
        raise NotFound("There is no error of this code.")
    return ErrorKind(code=kind.code, status=kind.status, title=kind.title)


@router.get("/metrics", response_class=Response)
@requires(Scope.METRICS)
async def metrics(platform: PlatformDep) -> Response:
    """All metrics in the Prometheus text format."""
    telemetry, services = platform.telemetry, platform.services
    telemetry.is_ready.set(platform.lifecycle.phase is Phase.READY)
    telemetry.index_vectors.clear()
    if services is not None and services.tasks is not None:
        for gallery, count in services.tasks.galleries.vector_counts().items():
            telemetry.index_vectors.labels(gallery).set(count)
        telemetry.index_applied_seq.set(services.tasks.galleries.applied_seq)
        telemetry.index_lag.set(services.tasks.galleries.lag)
    return Response(telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", include_in_schema=False)
@requires(Scope.OPEN)
async def openapi(request: Request) -> JSONResponse:
    """The contract."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", include_in_schema=False)
@requires(Scope.OPEN)
async def docs() -> HTMLResponse:
    """The contract as a page."""
    return get_swagger_ui_html(openapi_url="openapi.json", title="Vermouth")
