"""Items of a gallery: written one by one or many at once, read back with their pictures."""

import json
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from app.api.auth import Scope, requires
from app.api.bodies import (
    JSON,
    MULTIPART,
    check_metadata,
    form_model,
    parse_json,
    read_filter,
    read_json,
    read_multipart,
)
from app.api.conditional import IdempotentRoute, IfMatchDep, TokenDep, etag, wait_for_min_seq
from app.api.deps import LimitsDep, PixelBudgetDep, RemainingDep, check_content_type, new_router
from app.api.openapi_body import request_body
from app.api.problems import problem_body
from app.api.routers.galleries import GalleryPath
from app.api.schemas.galleries import (
    ImageQuery,
    ItemFields,
    ItemOutcome,
    ItemPage,
    ItemPageQuery,
    ItemPatch,
    ItemPut,
    ItemPutOptions,
    ItemReport,
    ItemsDelete,
    ItemsDeleted,
    ItemsForm,
    ItemsWritten,
    NewItem,
    WriteQuery,
)
from app.api.schemas.wire import ITEM_PATTERN
from app.api.sources import source_of
from app.api.task_deps import TasksDep
from app.errors import Invalid, ServiceError
from app.stores.records.items import Exported, Item
from app.tasks.assemble import Tasks
from app.tasks.inputs import Source
from app.tasks.items import ItemPutRequest, ItemRequest, Outcome

router = new_router("items", route_class=IdempotentRoute, dependencies=[Depends(wait_for_min_seq)])
NDJSON = "application/x-ndjson"
MERGE_PATCH = "application/merge-patch+json"
ItemPath = Annotated[str, Path(pattern=ITEM_PATTERN, description="The caller's id of an item.")]


async def read_items(request: Request, limits: LimitsDep) -> list[ItemRequest]:
    """The items of either form of body, in order."""
    if check_content_type(request, JSON, MULTIPART) == JSON:
        wires = await read_json(request, list[NewItem])
        pairs: list[tuple[ItemFields, Source]] = [(wire, source_of(wire.image)) for wire in wires]
    else:
        form = await read_multipart(request, limits, files={"image"})
        images = form.images("image")
        texts = form.scalars()
        described = texts.pop("items", None)
        entries = [{} for _ in images] if described is None else parse_json(described)
        fields = form_model(ItemsForm, {"items": entries, **texts}).items
        if len(fields) != len(images):
            raise Invalid(f"The part 'items' has {len(fields)} entries for {len(images)} images.")
        pairs = list(zip(fields, images, strict=True))
    if not 1 <= len(pairs) <= limits.max_items_per_call:
        raise Invalid(f"Send 1 to {limits.max_items_per_call} items a call.")
    for place, (wire, _) in enumerate(pairs):
        check_metadata(wire.metadata, f"items[{place}].metadata", limits)
    return [
        ItemRequest(id=wire.id, source=source, metadata=wire.metadata, caption=wire.caption) for wire, source in pairs
    ]


async def read_put(request: Request, limits: LimitsDep) -> tuple[ItemPut | ItemPutOptions, Source | None]:
    """The fields and the image, if any, of either form of body."""
    wire: ItemPut | ItemPutOptions
    source: Source | None
    if check_content_type(request, JSON, MULTIPART) == JSON:
        wire = await read_json(request, ItemPut)
        source = None if wire.image is None else source_of(wire.image)
    else:
        form = await read_multipart(request, limits, files={"image"})
        fields: dict[str, object] = {**form.scalars()}
        if "metadata" in fields:
            fields["metadata"] = parse_json(str(fields["metadata"]))
        wire, source = form_model(ItemPutOptions, fields), form.one_image("image")
    check_metadata(wire.metadata, "metadata", limits)
    return wire, source


@router.post(
    "/galleries/{name}/items",
    response_model=ItemsWritten,
    response_model_exclude_unset=True,
    summary="Add or replace items",
    openapi_extra=request_body(json=list[NewItem], form=ItemsForm, files={"image": True}),
)
@requires(Scope.WRITE)
async def add_items(
    request: Request,
    response: Response,
    tasks: TasksDep,
    name: GalleryPath,
    items: Annotated[list[ItemRequest], Depends(read_items)],
    query: Annotated[WriteQuery, Query()],
    budget: PixelBudgetDep,
    remaining_s: RemainingDep,
    token: TokenDep,
) -> ItemsWritten:
    """One bad image rejects itself, not its neighbours; of two equal ids the later is rejected."""
    seq, outcomes = await tasks.items.add(name, items, budget, wait=query.wait, token=token, timeout_s=remaining_s)
    response.headers["X-Seq"] = str(seq)
    return ItemsWritten(seq=seq, results=[_outcome(outcome, request) for outcome in outcomes])


@router.put(
    "/galleries/{name}/items/{item_id}",
    response_model=ItemReport,
    summary="Create, replace or relabel one item",
    responses={201: {"model": ItemReport}},
    openapi_extra=request_body(json=ItemPut, form=ItemPutOptions, files={"image": False}),
)
@requires(Scope.WRITE)
async def put_item(
    response: Response,
    tasks: TasksDep,
    name: GalleryPath,
    item_id: ItemPath,
    inputs: Annotated[tuple[ItemPut | ItemPutOptions, Source | None], Depends(read_put)],
    query: Annotated[WriteQuery, Query()],
    if_match: IfMatchDep,
    budget: PixelBudgetDep,
    remaining_s: RemainingDep,
) -> ItemReport:
    """201 where the item is new; without an image what is sent of metadata and caption changes on an existing one.

    A caption alone is 412 where another write comes between, with `If-Match` or without.
    """
    wire, source = inputs
    seq, item, is_new = await tasks.items.put(
        name,
        ItemPutRequest(id=item_id, source=source, metadata=wire.metadata, caption=wire.caption),
        budget,
        wait=query.wait,
        if_match=if_match,
        timeout_s=remaining_s,
    )
    response.headers["X-Seq"] = str(seq)
    response.headers["ETag"] = etag(item.seq)
    response.status_code = 201 if is_new else 200
    return _report(tasks, name, item)


@router.patch(
    "/galleries/{name}/items/{item_id}",
    response_model=ItemReport,
    summary="Change an item's metadata",
    openapi_extra=request_body(json=ItemPatch),
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
) -> ItemReport:
    """A JSON merge patch: null takes a member away, what is not named stays."""
    check_content_type(request, JSON, MERGE_PATCH)
    wire = await read_json(request, ItemPatch)

    seq, item = await tasks.items.patch(
        name,
        item_id,
        wire.metadata,
        check=lambda merged: check_metadata(merged, "metadata", limits),
        if_match=if_match,
    )
    response.headers["X-Seq"] = str(seq)
    response.headers["ETag"] = etag(item.seq)
    return _report(tasks, name, item)


@router.post(
    "/galleries/{name}/items/delete",
    response_model=ItemsDeleted,
    summary="Delete many items",
    openapi_extra=request_body(json=ItemsDelete),
)
@requires(Scope.WRITE)
async def delete_items(
    request: Request,
    response: Response,
    tasks: TasksDep,
    name: GalleryPath,
    query: Annotated[WriteQuery, Query()],
    token: TokenDep,
) -> ItemsDeleted:
    """Some ids, or all that pass a filter; all of them or none."""
    check_content_type(request, JSON)
    wire = await read_json(request, ItemsDelete)
    if (wire.ids is None) == (wire.filter is None):
        raise Invalid("Send exactly one of ids and filter.")
    removed = await tasks.items.remove_many(
        name, ids=wire.ids, where=read_filter(wire.filter), wait=query.wait, token=token
    )
    response.headers["X-Seq"] = str(removed.seq)
    return ItemsDeleted(seq=removed.seq, deleted=removed.count, missing=[*removed.missing])


@router.get(
    "/galleries/{name}/export",
    summary="All items with their vectors",
    response_class=Response,
    responses={200: {"content": {NDJSON: {"schema": {"type": "string"}}}}},
)
@requires(Scope.READ)
async def export_items(tasks: TasksDep, name: GalleryPath) -> Response:
    """One JSON object a line: id, metadata, vector; all as of the `seq` in `X-Seq`."""
    seq, lines = await tasks.items.export(name, _lines)
    return StreamingResponse(lines, media_type=NDJSON, headers={"X-Seq": str(seq)})


@router.get("/galleries/{name}/items", response_model=ItemPage, summary="Items by id, in pages")
@requires(Scope.READ)
async def list_items(tasks: TasksDep, name: GalleryPath, query: Annotated[ItemPageQuery, Query()]) -> ItemPage:
    """One page; pass `next_cursor` as `cursor` for the next."""
    where = read_filter(None if query.filter is None else parse_json(query.filter))
    page, next_cursor = await tasks.items.page(name, after=query.cursor, limit=query.limit, where=where)
    return ItemPage(items=[_report(tasks, name, item) for item in page], next_cursor=next_cursor)


@router.get("/galleries/{name}/items/{item_id}", response_model=ItemReport, summary="One item")
@requires(Scope.READ)
async def get_item(response: Response, tasks: TasksDep, name: GalleryPath, item_id: ItemPath) -> ItemReport:
    """Its metadata and what is known of its picture."""
    item = await tasks.items.get(name, item_id)
    response.headers["ETag"] = etag(item.seq)
    return _report(tasks, name, item)


@router.get(
    "/galleries/{name}/items/{item_id}/image",
    summary="An item's picture",
    response_class=Response,
    responses={200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}},
)
@requires(Scope.READ)
async def get_item_image(
    tasks: TasksDep, name: GalleryPath, item_id: ItemPath, query: Annotated[ImageQuery, Query()]
) -> Response:
    """The stored picture, or a WebP thumbnail whose longest side is `size`."""
    item, data = await tasks.items.image(name, item_id, thumbnail_size=query.size)
    if query.size is None:
        return Response(data, media_type=item.media_type, headers={"ETag": f'"{item.sha256}"'})
    return Response(data, media_type="image/webp", headers={"ETag": f'"{item.sha256}-{query.size}"'})


@router.delete("/galleries/{name}/items/{item_id}", status_code=204, summary="Delete one item")
@requires(Scope.WRITE)
async def delete_item(
    tasks: TasksDep,
    name: GalleryPath,
    item_id: ItemPath,
    query: Annotated[WriteQuery, Query()],
    if_match: IfMatchDep,
) -> Response:
    """Gone from search and storage once answered."""
    seq = await tasks.items.remove(name, item_id, wait=query.wait, if_match=if_match)
    return Response(status_code=204, headers={"X-Seq": str(seq)})


def _outcome(outcome: Outcome, request: Request) -> ItemOutcome:
    fields: dict[str, object] = {"id": outcome.id, "status": outcome.status.value}
    if outcome.error is not None:
        fields["problem"] = _problem(outcome.error, request)
    return ItemOutcome.model_validate(fields)


def _problem(error: ServiceError, request: Request) -> dict[str, object]:
    return problem_body(error, instance=request.url.path, request_id=request.state.request_id)


def _lines(part: Sequence[Exported]) -> bytes:
    rows = ({"id": one.id, "metadata": dict(one.metadata), "vector": one.vector.tolist()} for one in part)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _report(tasks: Tasks, gallery: str, item: Item) -> ItemReport:
    return ItemReport.model_validate(
        {
            "id": item.id,
            "metadata": dict(item.metadata),
            "caption": item.caption,
            "sha256": item.sha256,
            "media_type": item.media_type,
            "width": item.width,
            "height": item.height,
            "fingerprint": tasks.items.active_fingerprint,
            "created_at": item.created_at,
            "seq": item.seq,
            "image_url": f"/galleries/{gallery}/items/{item.id}/image",
        }
    )
