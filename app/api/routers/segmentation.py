"""`POST /segment`, and class sets: `GET /class-sets`, `PUT|GET|DELETE /class-sets/{name}`."""

import base64
from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from app.api.auth import Scope, ScopedRoute, requires
from app.api.bodies import read_body, read_json
from app.api.deps import MIN_SEQ, CallDep, IfMatchDep, LimitsDep, TasksDep, set_version, written
from app.api.forms import Form
from app.api.openapi import request_body
from app.api.schemas import segmentation as schemas
from app.api.schemas.wire import GALLERY_PATTERN
from app.api.strict_json import JSON, json_response, parse_json
from app.domain import Limits
from app.errors import Invalid, NotAcceptable, TooMuchWork
from app.stores.records.class_sets import ClassPrompt
from app.tasks.features import Source
from app.tasks.masks import bit_png, palette_png
from app.tasks.segmentation import ClassAnswer, SegmentAnswer, SegmentQuery

router = APIRouter(tags=["segmentation"], route_class=ScopedRoute, dependencies=MIN_SEQ)
class_sets = APIRouter(tags=["class sets"], route_class=ScopedRoute, dependencies=MIN_SEQ)
PNG = "image/png"
MAX_PNG_CELLS = 512_000_000
"""Most pixels that the 1-bit masks of one response may have together."""

SegmentInput = tuple[schemas.SegmentOptions, Source]
ClassSetPath = Annotated[str, Path(pattern=GALLERY_PATTERN, description="Name of a class set.")]


async def read_segment(request: Request, limits: LimitsDep) -> SegmentInput:
    """The options and the image, of a JSON body or a form."""
    texts = dict.fromkeys(schemas.SegmentOptions.model_fields, ())
    return await read_body(request, schemas.SegmentRequest, _segment, limits, files={"image"}, texts=texts)


async def wanted_type(request: Request) -> str:
    """The media type of the response: JSON, or the label map as PNG where `Accept` names it.

    Raises:
        NotAcceptable: `Accept` allows neither.
    """
    accept = request.headers.get("accept", "*/*").lower()
    kinds = {entry.partition(";")[0].strip() for entry in accept.split(",")}
    # A client that names both gets JSON.
    if PNG in kinds and JSON not in kinds:
        return PNG
    if kinds & {JSON, "application/*", "*/*"}:
        return JSON
    raise NotAcceptable("Accept must allow application/json or image/png.")


@router.post(
    "/segment",
    response_model=schemas.SegmentResponse,
    summary="Masks of named classes",
    responses={200: {"content": {PNG: {"schema": {"type": "string", "format": "binary"}}}}},
    openapi_extra=request_body(json=schemas.SegmentRequest, form=schemas.SegmentOptions, files={"image": False}),
)
@requires(Scope.READ)
async def segment(
    call: CallDep,
    media_type: Annotated[str, Depends(wanted_type)],
    inputs: Annotated[SegmentInput, Depends(read_segment)],
) -> Response:
    """Disjoint masks at the input's size; `Accept: image/png` returns the label map as a palette PNG."""
    options, source = inputs
    if (options.classes is None) == (options.class_set is None):
        raise Invalid("Send exactly one of classes and class_set.")
    query = SegmentQuery(
        source=source,
        classes=[_prompt_of(entry) for entry in options.classes or ()],
        class_set=options.class_set,
        has_background=options.background,
        threshold=options.threshold,
        caption=options.caption,
        is_reproducible=options.reproducible,
    )
    # The task renders in its worker pool: encoding large masks takes milliseconds.
    render: Callable[[SegmentAnswer], bytes] = _png if media_type == PNG else partial(_body, form=options.format)
    answer, body = await call.tasks.segmentation.segment(query, call.budget, render, timeout_s=call.timeout_s)
    call.add_timings(answer.timings_ms)
    return Response(body, media_type=media_type)


@class_sets.get("/class-sets", summary="All class sets")
@requires(Scope.READ)
async def list_class_sets(tasks: TasksDep) -> schemas.ClassSetList:
    """All class sets, ordered by name."""
    found = await tasks.segmentation.class_sets()
    return schemas.ClassSetList(
        class_sets=[
            schemas.ClassSetSummary(name=one.name, version=one.version, count=len(one.classes)) for one in found
        ]
    )


@class_sets.put(
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
    prompts = [_prompt_of(entry) for entry in wire.classes]
    seq, stored, is_new = await call.tasks.segmentation.put_class_set(
        name, prompts, if_match=if_match, timeout_s=call.timeout_s
    )
    set_version(response, stored.version, seq=seq, is_new=is_new)
    return schemas.ClassSetReport.model_validate(stored)


@class_sets.get("/class-sets/{name}", response_model=schemas.ClassSetReport, summary="One class set")
@requires(Scope.READ)
async def get_class_set(request: Request, tasks: TasksDep, name: ClassSetPath) -> Response:
    """The classes of a set, in order."""
    stored = await tasks.segmentation.class_set(name)
    response = await json_response(request, len(stored.classes), lambda: schemas.ClassSetReport.model_validate(stored))
    set_version(response, stored.version)
    return response


@class_sets.delete("/class-sets/{name}", status_code=204, summary="Delete a class set")
@requires(Scope.WRITE)
async def delete_class_set(tasks: TasksDep, name: ClassSetPath, if_match: IfMatchDep) -> Response:
    """The set goes together with its embeddings."""
    return written(await tasks.segmentation.delete_class_set(name, if_match=if_match))


def _segment(body: schemas.SegmentRequest | Form, limits: Limits) -> SegmentInput:
    if not isinstance(body, Form):
        return body, body.image.source
    image = body.one_image("image")
    if image is None:
        raise Invalid("The form needs a part 'image'.")
    texts = body.repeated("classes")
    if len(texts) > limits.max_classes:
        raise Invalid(f"At most {limits.max_classes} classes a request.")
    # A class of a form is a name, or a JSON object with synonyms and templates; all objects share one limit.
    are_json = [text.lstrip().startswith("{") for text in texts]
    most = limits.max_json_values // max(1, sum(are_json))
    classes = [parse_json(text, most) if is_json else text for text, is_json in zip(texts, are_json, strict=True)]
    fields = body.fields(repeated="classes") | ({"classes": classes} if classes else {})
    return schemas.SegmentOptions.model_validate(fields, context=limits), image


def _prompt_of(entry: str | schemas.ClassObject) -> ClassPrompt:
    """The class that a name, or an object with synonyms and templates, describes."""
    if isinstance(entry, str):
        return ClassPrompt(name=entry)
    return ClassPrompt(name=entry.name, synonyms=entry.synonyms, templates=entry.templates)


def _png(answer: SegmentAnswer) -> bytes:
    return palette_png(answer.labels, [entry.name for entry in answer.classes])


def _body(answer: SegmentAnswer, form: str) -> bytes:
    height, width = answer.labels.shape
    found = sum(entry.region is not None for entry in answer.classes)
    # One bit a pixel and class: checked before any mask is encoded.
    if form == "png" and found * height * width > MAX_PNG_CELLS:
        raise TooMuchWork("PNG masks of so many classes are too large: request rle or label_map.")
    label_map = base64.b64encode(_png(answer)).decode() if form == "label_map" else None
    response = schemas.SegmentResponse(
        width=width,
        height=height,
        fingerprint=answer.fingerprint,
        classes=[_class(entry, answer, form) for entry in answer.classes],
        label_map=label_map,
        timings_ms=dict(answer.timings_ms),
    )
    # `label_map` appears only where it was requested; null `mask` and `bbox` always do.
    return response.model_dump_json(exclude=None if label_map else {"label_map"}).encode()


def _class(entry: ClassAnswer, answer: SegmentAnswer, form: str) -> schemas.SegmentedClass:
    height, width = answer.labels.shape
    region = entry.region
    mask: schemas.RleMask | str | None = None
    if region is not None and form == "rle":
        mask = schemas.RleMask(size=(height, width), counts=region.rle_counts)
    elif region is not None and form == "png":
        mask = bit_png(answer.labels == entry.index)
    area = region.area if region else 0
    return schemas.SegmentedClass(
        index=entry.index,
        name=entry.name,
        area=area,
        fraction=area / (height * width),
        score=entry.score,
        bbox=region.bbox if region else None,
        mask=mask,
    )
