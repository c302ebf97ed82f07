"""Galleries: `GET /galleries`, `PUT|GET|DELETE /galleries/{name}`."""

from typing import Annotated

from fastapi import Depends, Path, Query, Request, Response

from app.api.auth import Scope, requires
from app.api.bodies import JSON, check_content_type, read_json
from app.api.conditional import wait_for_min_seq
from app.api.deps import BundleDep, TasksDep, new_router
from app.api.openapi import request_body
from app.api.schemas.galleries import (
    GalleryDeleteQuery,
    GalleryFields,
    GalleryList,
    GalleryReport,
    GallerySummary,
    IndexReport,
)
from app.api.schemas.wire import GALLERY_PATTERN
from app.domain import BundleInfo
from app.tasks.galleries import GalleryState

router = new_router("galleries", dependencies=[Depends(wait_for_min_seq)])
GalleryPath = Annotated[str, Path(pattern=GALLERY_PATTERN, description="Name of a gallery.")]


@router.get("/galleries", summary="All galleries")
@requires(Scope.READ)
async def list_galleries(tasks: TasksDep) -> GalleryList:
    """All galleries, ordered by name, with the number of their items."""
    found = await tasks.galleries.all()
    return GalleryList(galleries=[GallerySummary.model_validate(one, from_attributes=True) for one in found])


@router.put(
    "/galleries/{name}",
    summary="Create a gallery or change its fields",
    responses={201: {"model": GalleryReport}},
    openapi_extra=request_body(json=GalleryFields),
)
@requires(Scope.WRITE)
async def put_gallery(
    request: Request, response: Response, tasks: TasksDep, bundle: BundleDep, name: GalleryPath
) -> GalleryReport:
    """201 where the gallery is new. Items stay as they are; an empty body changes nothing."""
    fields = GalleryFields()
    # `curl -X PUT` without a body creates a gallery.
    if await request.body():
        check_content_type(request, JSON)
        fields = await read_json(request, GalleryFields)
    seq, is_new, state = await tasks.galleries.put(name, fields.description)
    response.headers["X-Seq"] = str(seq)
    response.status_code = 201 if is_new else 200
    return _report(state, bundle)


@router.get("/galleries/{name}", summary="One gallery and its index")
@requires(Scope.READ)
async def get_gallery(tasks: TasksDep, bundle: BundleDep, name: GalleryPath) -> GalleryReport:
    """The number of items, and the state of the index."""
    return _report(await tasks.galleries.get(name), bundle)


@router.delete("/galleries/{name}", status_code=204, summary="Delete a gallery")
@requires(Scope.WRITE)
async def delete_gallery(tasks: TasksDep, name: GalleryPath, query: Annotated[GalleryDeleteQuery, Query()]) -> Response:
    """A gallery with items needs `?confirm={name}`; `default` cannot be deleted."""
    seq = await tasks.galleries.delete(name, confirmed=query.confirm == name)
    return Response(status_code=204, headers={"X-Seq": str(seq)})


def _report(state: GalleryState, bundle: BundleInfo) -> GalleryReport:
    return GalleryReport(
        name=state.gallery.name,
        description=state.gallery.description,
        count=state.gallery.count,
        index=IndexReport(
            kind=state.index.kind,
            vectors=state.index.vectors,
            applied_seq=state.index.applied_seq,
            head_seq=state.head_seq,
            fingerprint=bundle.fingerprint,
            digest=state.index.digest,
            recall=state.index.recall,
        ),
    )
