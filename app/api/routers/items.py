"""Items of a gallery: write, read, export and delete them."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from app.api.auth import Scope, requires
from app.api.bodies import read_body, read_filter, read_json
from app.api.deps import MIN_SEQ, CallDep, IfMatchDep, LimitsDep, Tasks, TasksDep, image_link, set_version, written
from app.api.forms import Form
from app.api.idempotency import IdempotentRoute
from app.api.images import REVALIDATED, image_response
from app.api.middleware import is_current
from app.api.openapi import request_body
from app.api.problems import problem_body
from app.api.routers.galleries import GalleryPath
from app.api.schemas import galleries as schemas
from app.api.schemas.wire import ITEM_PATTERN
from app.api.strict_json import check_metadata, json_response, parse_json
from app.domain import Limits
from app.errors import Invalid
from app.stores.records.exports import Exported
from app.stores.records.items import Item
from app.tasks.features import Source
from app.tasks.items import ItemRequest, Outcome
from app.tasks.webdataset import TAR, webdataset
from models.types import VectorLayout

router = APIRouter(tags=["items"], route_class=IdempotentRoute, dependencies=MIN_SEQ)
_EXPORTED = {"semantic": "vector", "visual": "visual_vector"}
_STORED = schemas.ItemReport.model_fields.keys() - {"fingerprint", "image_url"}
NDJSON = "application/x-ndjson"
MERGE_PATCH = "application/merge-patch+json"  # RFC 7396
PutInput = tuple[schemas.ItemPut | schemas.ItemPutOptions, Source | None]
PageQuery = Annotated[schemas.ItemPageQuery, Query()]
Write = Annotated[schemas.WriteQuery, Query()]
ItemPath = Annotated[str, Path(pattern=ITEM_PATTERN, description="The caller's id of an item.")]


async def read_items(request: Request, limits: LimitsDep) -> list[ItemRequest]:
    """The items, in order, of a JSON body or a form."""
    texts = {"items": schemas.ItemFields.model_fields.keys()}
    return await read_body(request, schemas.NewItems, _items, limits, files={"image"}, texts=texts)


async def read_put(request: Request, limits: LimitsDep) -> PutInput:
    """The fields and the image, if any, of a JSON body or a form."""
    texts = dict.fromkeys(schemas.ItemPutOptions.model_fields, ())
    return await read_body(request, schemas.ItemPut, _put, limits, files={"image"}, texts=texts)


@router.post(
    "/galleries/{name}/items",
    response_model_exclude_unset=True,  # `problem` appears only where there is one
    summary="Add or replace items",
    openapi_extra=request_body(json=schemas.NewItems, form=schemas.ItemsForm, files={"image": True}),
)
@requires(Scope.WRITE)
async def add_items(
    response: Response,
    call: CallDep,
    name: GalleryPath,
    items: Annotated[list[ItemRequest], Depends(read_items)],
    query: Write,
) -> schemas.ItemsWritten:
    """A bad image rejects its own item only; of two items with one id the later is rejected."""
    seq, outcomes = await call.tasks.items.add(
        name, items, call.budget, wait=query.wait, token=call.token, timeout_s=call.timeout_s
    )
    response.headers["X-Seq"] = str(seq)
    return schemas.ItemsWritten(seq=seq, results=[_outcome(outcome, call.request) for outcome in outcomes])


@router.put(
    "/galleries/{name}/items/{item_id}",
    summary="Create, replace or relabel one item",
    responses={201: {"model": schemas.ItemReport}},
    openapi_extra=request_body(json=schemas.ItemPut, form=schemas.ItemPutOptions, files={"image": False}),
)
@requires(Scope.WRITE)
async def put_item(
    response: Response,
    call: CallDep,
    name: GalleryPath,
    item_id: ItemPath,
    inputs: Annotated[PutInput, Depends(read_put)],
    query: Write,
    if_match: IfMatchDep,
) -> schemas.ItemReport:
    """201 where the item is new. Without an image, metadata and caption of an existing item change.

    A caption alone is 412 where another write comes between, with `If-Match` or without.
    """
    wire, source = inputs
    seq, item, is_new = await call.tasks.items.put(
        name,
        item_id,
        call.budget,
        source=source,
        metadata=wire.metadata,
        caption=wire.caption,
        wait=query.wait,
        if_match=if_match,
        timeout_s=call.timeout_s,
    )
    set_version(response, item.seq, seq=seq, is_new=is_new)
    return _report(call.request, call.tasks, name, item)


@router.patch(
    "/galleries/{name}/items/{item_id}",
    summary="Change an item's metadata",
    openapi_extra=request_body(json=schemas.ItemPatch),
)
@requires(Scope.WRITE)
async def patch_item(
    request: Request,
    response: Response,
    tasks: TasksDep,
    name: GalleryPath,
    item_id: ItemPath,
    limits: LimitsDep,
    if_match: IfMatchDep,
) -> schemas.ItemReport:
    """A JSON merge patch (RFC 7396): null removes a member, and members that are not named stay."""
    wire = await read_json(request, schemas.ItemPatch, limits, MERGE_PATCH)
    seq, item = await tasks.items.patch(
        name, item_id, wire.metadata, check=lambda merged: check_metadata(merged, "metadata", limits), if_match=if_match
    )
    set_version(response, item.seq, seq=seq)
    return _report(request, tasks, name, item)


@router.post(
    "/galleries/{name}/items/delete", summary="Delete many items", openapi_extra=request_body(json=schemas.ItemsDelete)
)
@requires(Scope.WRITE)
async def delete_items(
    request: Request, response: Response, call: CallDep, limits: LimitsDep, name: GalleryPath, query: Write
) -> schemas.ItemsDeleted:
    """Delete some ids, or all items that pass a filter, in one transaction."""
    wire = await read_json(request, schemas.ItemsDelete, limits)
    if (wire.ids is None) == (wire.filter is None):
        raise Invalid("Send exactly one of ids and filter.")
    removed = await call.tasks.items.remove_many(
        name, ids=wire.ids, where=read_filter(wire.filter), wait=query.wait, token=call.token
    )
    response.headers["X-Seq"] = str(removed.seq)
    return schemas.ItemsDeleted(seq=removed.seq, deleted=removed.count, missing=[*removed.missing])


@router.get(
    "/galleries/{name}/export",
    summary="All items with their vectors",
    response_class=Response,
    responses={
        200: {
            "content": {NDJSON: {"schema": {"type": "string"}}, TAR: {"schema": {"type": "string", "format": "binary"}}}
        }
    },
)
@requires(Scope.READ)
async def export_items(
    request: Request, tasks: TasksDep, name: GalleryPath, query: Annotated[schemas.ExportQuery, Query()]
) -> Response:
    """One JSON object a line with id, metadata, caption, image_url and vector: a snapshot at the `seq` of `X-Seq`.

    `vector` is the one that sketches and texts are compared with; `visual_vector` comes beside it if images
    are compared by another.
    `format=webdataset` is a tar: of each item its image, `.json` metadata, `.id`, and `.txt` caption if it has one.
    `vermouth gallery import` reads both.
    """
    if query.format == "webdataset":
        seq, images = await tasks.items.export_images(name)
        headers = {"X-Seq": str(seq), "Content-Disposition": f'attachment; filename="{name}.tar"'}
        return StreamingResponse(webdataset(images), media_type=TAR, headers=headers)
    seq, lines = await tasks.items.export(name, partial(_lines, request, name, tasks.items.layout))
    return StreamingResponse(lines, media_type=NDJSON, headers={"X-Seq": str(seq)})


@router.get("/galleries/{name}/items", response_model=schemas.ItemPage, summary="Items by id, in pages")
@requires(Scope.READ)
async def list_items(request: Request, tasks: TasksDep, name: GalleryPath, query: PageQuery) -> Response:
    """One page, of at most 2 MiB of metadata; pass `next_cursor` as `cursor` for the next."""
    given = None if query.filter is None else parse_json(query.filter, what="The JSON of the parameter 'filter'")
    where = read_filter(given)
    page, next_cursor, total = await tasks.items.page(name, after=query.cursor, limit=query.limit, where=where)

    def build() -> schemas.ItemPage:
        reports = [_report(request, tasks, name, item) for item in page]
        return schemas.ItemPage(items=reports, next_cursor=next_cursor, total=total)

    return await json_response(request, len(page), build)


@router.get("/galleries/{name}/items/{item_id}", summary="One item")
@requires(Scope.READ)
async def get_item(
    request: Request, response: Response, tasks: TasksDep, name: GalleryPath, item_id: ItemPath
) -> schemas.ItemReport:
    """The metadata of an item and the properties of its image."""
    item = await tasks.items.get(name, item_id)
    set_version(response, item.seq)
    return _report(request, tasks, name, item)


@router.get(
    "/galleries/{name}/items/{item_id}/image",
    summary="An item's image",
    response_class=Response,
    responses={200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}},
)
@requires(Scope.READ)
async def get_item_image(
    request: Request,
    tasks: TasksDep,
    name: GalleryPath,
    item_id: ItemPath,
    query: Annotated[schemas.ImageQuery, Query()],
) -> Response:
    """The stored image, or a WebP thumbnail whose longest side is `size`."""
    if query.size is None:
        item, blob = await tasks.items.open_image(name, item_id)
        return image_response(
            blob, tasks.items.read_part, media_type=item.media_type, tag=item.sha256, caching=REVALIDATED
        )
    # Thumbnails are derived from the image: its digest and the size name their version. A known one is not made again.
    if known := request.headers.get("if-none-match"):
        headers = _thumbnail_headers(await tasks.items.get(name, item_id), query.size)
        if is_current(known, headers["ETag"]):
            return Response(status_code=304, headers=headers)
    item, data = await tasks.items.thumbnail(name, item_id, query.size)
    return Response(data, media_type="image/webp", headers=_thumbnail_headers(item, query.size))


@router.delete("/galleries/{name}/items/{item_id}", status_code=204, summary="Delete one item")
@requires(Scope.WRITE)
async def delete_item(
    tasks: TasksDep, name: GalleryPath, item_id: ItemPath, query: Write, if_match: IfMatchDep
) -> Response:
    """The item is gone from search and storage when the response arrives."""
    return written(await tasks.items.remove(name, item_id, wait=query.wait, if_match=if_match))


def _items(body: schemas.NewItems | Form, limits: Limits) -> list[ItemRequest]:
    pairs: list[tuple[schemas.ItemFields, Source]]
    if isinstance(body, Form):
        images, form = body.images("image"), body.fields(json=["items"])
        form.setdefault("items", [{} for _ in images])  # a form of images alone: generated ids and no metadata
        fields = schemas.ItemsForm.model_validate(form, context=limits).items
        if len(fields) != len(images):
            raise Invalid(f"The part 'items' has {len(fields)} entries for {len(images)} images.")
        pairs = list(zip(fields, images, strict=True))
    else:
        pairs = [(wire, wire.image.source) for wire in body.root]
    if not pairs:
        raise Invalid(f"Send 1 to {limits.max_items_per_call} items a call.")
    for position, (wire, _) in enumerate(pairs):
        check_metadata(wire.metadata, f"items[{position}].metadata", limits)
    return [
        ItemRequest(id=wire.id, source=source, metadata=wire.metadata, caption=wire.caption) for wire, source in pairs
    ]


def _put(body: schemas.ItemPut | Form, limits: Limits) -> PutInput:
    wire: schemas.ItemPut | schemas.ItemPutOptions
    source: Source | None
    if isinstance(body, Form):
        wire = schemas.ItemPutOptions.model_validate(body.fields(json=["metadata"]), context=limits)
        source = body.one_image("image")
    else:
        wire, source = body, None if body.image is None else body.image.source
    check_metadata(wire.metadata, "metadata", limits)
    return wire, source


def _outcome(outcome: Outcome, request: Request) -> schemas.ItemOutcome:
    if outcome.error is None:
        return schemas.ItemOutcome(id=outcome.id, status=outcome.status)
    problem = problem_body(outcome.error, request)
    return schemas.ItemOutcome.model_validate({"id": outcome.id, "status": outcome.status, "problem": problem})


def _thumbnail_headers(item: Item, size: int) -> dict[str, str]:
    return {"ETag": f'"{item.sha256}-{size}"', **REVALIDATED}


def _lines(request: Request, gallery: str, layout: VectorLayout, part: Sequence[Exported]) -> bytes:
    rows = (
        {
            "id": one.id,
            "metadata": dict(one.metadata),
            "caption": one.caption,
            "image_url": image_link(request, f"/galleries/{gallery}/items/{one.id}/image"),
            **{_EXPORTED[name]: one.vector[at].tolist() for name, at in layout.slices.items()},
        }
        for one in part
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _report(request: Request, tasks: Tasks, gallery: str, item: Item) -> schemas.ItemReport:
    # Not validated again: a page of metadata would take a second.
    return schemas.ItemReport.model_construct(
        **{name: getattr(item, name) for name in _STORED},
        fingerprint=tasks.items.active_fingerprint,
        image_url=image_link(request, f"/galleries/{gallery}/items/{item.id}/image"),
    )
