"""Galleries: `GET /galleries`, `PUT|GET|DELETE /galleries/{name}`."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app.api.auth import Scope, ScopedRoute, requires
from app.api.bodies import read_json
from app.api.deps import MIN_SEQ, BundleDep, LimitsDep, TasksDep, written
from app.api.openapi import request_body
from app.api.schemas.galleries import (
    FacetList,
    FacetQuery,
    GalleryDeleteQuery,
    GalleryFields,
    GalleryList,
    GalleryReport,
)
from app.api.schemas.wire import GALLERY_PATTERN
from app.api.strict_json import json_response
from app.domain import BundleInfo
from app.tasks.galleries import GalleryState

router = APIRouter(tags=["galleries"], route_class=ScopedRoute, dependencies=MIN_SEQ)
GalleryPath = Annotated[str, Path(pattern=GALLERY_PATTERN, description="Name of a gallery.")]


@router.get("/galleries", summary="All galleries")
@requires(Scope.READ)
async def list_galleries(tasks: TasksDep) -> GalleryList:
    """All galleries, ordered by name, with the number of their items."""
    found = await tasks.galleries.all()
    return GalleryList.model_validate({"galleries": found, "total": len(found)})


@router.put(
    "/galleries/{name}",
    summary="Create a gallery or change its fields",
    responses={201: {"model": GalleryReport}},
    openapi_extra=request_body(json=GalleryFields),
)
@requires(Scope.WRITE)
async def put_gallery(
    request: Request, response: Response, tasks: TasksDep, limits: LimitsDep, bundle: BundleDep, name: GalleryPath
) -> GalleryReport:
    """201 where the gallery is new. Items stay as they are; an empty body changes nothing."""
    # `curl -X PUT` without a body creates a gallery.
    fields = await read_json(request, GalleryFields, limits) if await request.body() else GalleryFields()
    seq, is_new, state = await tasks.galleries.put(name, fields.description)
    response.headers["X-Seq"] = str(seq)
    response.status_code = 201 if is_new else 200
    return _report(state, bundle)


@router.get("/galleries/{name}", summary="One gallery and its index")
@requires(Scope.READ)
async def get_gallery(tasks: TasksDep, bundle: BundleDep, name: GalleryPath) -> GalleryReport:
    """The number of items, and the state of the index."""
    return _report(await tasks.galleries.get(name), bundle)


@router.get("/galleries/{name}/facets", response_model=FacetList, summary="Values of a metadata field, with counts")
@requires(Scope.READ)
async def get_facets(
    request: Request, tasks: TasksDep, name: GalleryPath, query: Annotated[FacetQuery, Query()]
) -> Response:
    """The most frequent first. Each request scans the gallery's metadata."""
    found = await tasks.galleries.facets(name, query.field, query.limit)
    fields = {"gallery": name, "field": query.field}
    return await json_response(
        request, len(found.facets), lambda: FacetList.model_validate({**fields, **asdict(found)})
    )


@router.delete("/galleries/{name}", status_code=204, summary="Delete a gallery")
@requires(Scope.WRITE)
async def delete_gallery(tasks: TasksDep, name: GalleryPath, query: Annotated[GalleryDeleteQuery, Query()]) -> Response:
    """A gallery with items needs `?confirm={name}`; `default` cannot be deleted."""
    return written(await tasks.galleries.delete(name, confirmed=query.confirm == name))


def _report(state: GalleryState, bundle: BundleInfo) -> GalleryReport:
    index = {**asdict(state.index), "head_seq": state.head_seq, "fingerprint": bundle.fingerprint}
    return GalleryReport.model_validate({**asdict(state.gallery), "index": index})
