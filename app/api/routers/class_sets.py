"""Class sets: `GET /class-sets`, `PUT|GET|DELETE /class-sets/{name}`."""

from typing import Annotated

from fastapi import Depends, Path, Request, Response

from app.api.auth import Scope, requires
from app.api.bodies import JSON, read_json
from app.api.conditional import IfMatchDep, etag, wait_for_min_seq
from app.api.deps import RemainingDep, check_content_type, new_router
from app.api.openapi_body import request_body
from app.api.routers.segmentation import prompt_of
from app.api.schemas.class_sets import ClassSetFields, ClassSetList, ClassSetReport, ClassSetSummary, StoredClass
from app.api.schemas.wire import GALLERY_PATTERN
from app.api.task_deps import TasksDep
from app.stores.records.class_sets import ClassSet

router = new_router("class sets", dependencies=[Depends(wait_for_min_seq)])
NamePath = Annotated[str, Path(pattern=GALLERY_PATTERN, description="Name of a class set.")]


@router.get("/class-sets", response_model=ClassSetList, summary="All class sets")
@requires(Scope.READ)
async def list_class_sets(tasks: TasksDep) -> ClassSetList:
    """Every class set, by name."""
    found = await tasks.segmentation.class_sets()
    return ClassSetList(
        class_sets=[ClassSetSummary(name=one.name, version=one.version, count=len(one.classes)) for one in found]
    )


@router.put(
    "/class-sets/{name}",
    response_model=ClassSetReport,
    summary="Create or replace a class set",
    responses={201: {"model": ClassSetReport}},
    openapi_extra=request_body(json=ClassSetFields),
)
@requires(Scope.WRITE)
async def put_class_set(
    request: Request,
    response: Response,
    tasks: TasksDep,
    name: NamePath,
    if_match: IfMatchDep,
    remaining_s: RemainingDep,
) -> ClassSetReport:
    """Its strings are embedded now, once; `/segment` takes it by name. 201 where it is new."""
    check_content_type(request, JSON)
    wire = await read_json(request, ClassSetFields)
    prompts = [prompt_of(entry) for entry in wire.classes]
    seq, stored, is_new = await tasks.segmentation.put_class_set(
        name, prompts, if_match=if_match, timeout_s=remaining_s
    )
    response.headers["X-Seq"] = str(seq)
    response.headers["ETag"] = etag(stored.version)
    response.status_code = 201 if is_new else 200
    return _report(stored)


@router.get("/class-sets/{name}", response_model=ClassSetReport, summary="One class set")
@requires(Scope.READ)
async def get_class_set(response: Response, tasks: TasksDep, name: NamePath) -> ClassSetReport:
    """Its classes, in order."""
    stored = await tasks.segmentation.class_set(name)
    response.headers["ETag"] = etag(stored.version)
    return _report(stored)


@router.delete("/class-sets/{name}", status_code=204, summary="Delete a class set")
@requires(Scope.WRITE)
async def delete_class_set(tasks: TasksDep, name: NamePath, if_match: IfMatchDep) -> Response:
    """With its embeddings."""
    seq = await tasks.segmentation.delete_class_set(name, if_match=if_match)
    return Response(status_code=204, headers={"X-Seq": str(seq)})


def _report(stored: ClassSet) -> ClassSetReport:
    return ClassSetReport(
        name=stored.name,
        version=stored.version,
        classes=[
            StoredClass(name=one.name, synonyms=[*one.synonyms], templates=[*one.templates]) for one in stored.classes
        ],
        created_at=stored.created_at,
        updated_at=stored.updated_at,
    )
