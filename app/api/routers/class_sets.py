"""Class sets: `GET /class-sets`, `PUT|GET|DELETE /class-sets/{name}`."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.api.auth import Scope, ScopedRoute, requires
from app.api.bodies import read_json
from app.api.deps import MIN_SEQ, CallDep, IfMatchDep, LimitsDep, TasksDep, set_version, written
from app.api.openapi import request_body
from app.api.routers.segmentation import prompt_of
from app.api.schemas import segmentation as schemas
from app.api.schemas.wire import GALLERY_PATTERN
from app.api.strict_json import json_response

router = APIRouter(tags=["class sets"], route_class=ScopedRoute, dependencies=MIN_SEQ)
ClassSetPath = Annotated[str, Path(pattern=GALLERY_PATTERN, description="Name of a class set.")]


@router.get("/class-sets", summary="All class sets")
@requires(Scope.READ)
async def list_class_sets(tasks: TasksDep) -> schemas.ClassSetList:
    """All class sets, ordered by name."""
    found = await tasks.segmentation.class_sets()
    return schemas.ClassSetList(
        class_sets=[
            schemas.ClassSetSummary(name=one.name, version=one.version, count=len(one.classes)) for one in found
        ],
        total=len(found),
    )


@router.put(
    "/class-sets/{name}",
    summary="Create or replace a class set",
    responses={201: {"model": schemas.ClassSetReport}},
    openapi_extra=request_body(json=schemas.ClassSetFields),
)
@requires(Scope.WRITE)
async def put_class_set(
    request: Request, response: Response, call: CallDep, limits: LimitsDep, name: ClassSetPath, if_match: IfMatchDep
) -> schemas.ClassSetReport:
    """Its strings are embedded once, now; `/segment` takes the set by name. 201 where it is new."""
    wire = await read_json(request, schemas.ClassSetFields, limits)
    prompts = [prompt_of(entry) for entry in wire.classes]
    seq, stored, is_new = await call.tasks.segmentation.put_class_set(
        name, prompts, if_match=if_match, timeout_s=call.timeout_s
    )
    set_version(response, stored.version, seq=seq, is_new=is_new)
    return schemas.ClassSetReport.model_validate(stored)


@router.get("/class-sets/{name}", response_model=schemas.ClassSetReport, summary="One class set")
@requires(Scope.READ)
async def get_class_set(request: Request, tasks: TasksDep, name: ClassSetPath) -> Response:
    """The classes of a set, in order."""
    stored = await tasks.segmentation.class_set(name)
    response = await json_response(request, len(stored.classes), lambda: schemas.ClassSetReport.model_validate(stored))
    set_version(response, stored.version)
    return response


@router.delete("/class-sets/{name}", status_code=204, summary="Delete a class set")
@requires(Scope.WRITE)
async def delete_class_set(tasks: TasksDep, name: ClassSetPath, if_match: IfMatchDep) -> Response:
    """The set goes together with its embeddings."""
    return written(await tasks.segmentation.delete_class_set(name, if_match=if_match))
