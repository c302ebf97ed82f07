"""`POST /segment`."""

import base64
from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import Depends, Request, Response

from app.api.auth import Scope, requires
from app.api.bodies import JSON, MULTIPART, form_model, parse_json, read_json, read_multipart
from app.api.conditional import wait_for_min_seq
from app.api.deps import LimitsDep, PixelBudgetDep, RemainingDep, check_content_type, new_router
from app.api.openapi_body import request_body
from app.api.schemas.segmentation import (
    ClassObject,
    RleMask,
    SegmentedClass,
    SegmentOptions,
    SegmentRequest,
    SegmentResponse,
)
from app.api.sources import source_of
from app.api.task_deps import TasksDep, tell_timings
from app.errors import Invalid, NotAcceptable, TooMuchWork
from app.stores.records.class_sets import ClassPrompt
from app.tasks.inputs import Source
from app.tasks.segmentation.masks import bit_png, palette_png
from app.tasks.segmentation.segmentation import ClassAnswer, SegmentAnswer, SegmentQuery

router = new_router("segmentation", dependencies=[Depends(wait_for_min_seq)])
PNG = "image/png"
MAX_PNG_CELLS = 512_000_000
"""Most pixels that 1-bit masks of all found classes may hold together."""

SegmentInput = tuple[SegmentOptions, Source]


async def read_segment(request: Request, limits: LimitsDep) -> SegmentInput:
    """The image and options of either form of body."""
    if check_content_type(request, JSON, MULTIPART) == JSON:
        wire = await read_json(request, SegmentRequest)
        return wire, source_of(wire.image)
    form = await read_multipart(request, limits, files={"image"})
    image = form.one_image("image")
    if image is None:
        raise Invalid("The form needs a part 'image'.")
    classes = [parse_json(text) if text.lstrip().startswith("{") else text for text in form.repeated("classes")]
    named = {"classes": classes} if classes else {}
    return form_model(SegmentOptions, {**form.scalars(repeated={"classes"}), **named}), image


async def wanted_type(request: Request) -> str:
    """JSON, or the label map itself where `Accept` names it.

    Raises:
        NotAcceptable: neither fits.
    """
    accept = request.headers.get("accept", "*/*").lower()
    kinds = {entry.partition(";")[0].strip() for entry in accept.split(",")}
    if PNG in kinds and JSON not in kinds:
        return PNG
    if kinds & {JSON, "application/*", "*/*"}:
        return JSON
    raise NotAcceptable("The answer is application/json or image/png.")


@router.post(
    "/segment",
    response_model=SegmentResponse,
    summary="Masks of named classes",
    responses={200: {"content": {PNG: {"schema": {"type": "string", "format": "binary"}}}}},
    openapi_extra=request_body(json=SegmentRequest, form=SegmentOptions, files={"image": False}),
)
@requires(Scope.READ)
async def segment(
    request: Request,
    tasks: TasksDep,
    media_type: Annotated[str, Depends(wanted_type)],
    inputs: Annotated[SegmentInput, Depends(read_segment)],
    budget: PixelBudgetDep,
    remaining_s: RemainingDep,
) -> Response:
    """Disjoint masks at the input's own size; `Accept: image/png` gives the label map as a palette PNG."""
    options, source = inputs
    if (options.classes is None) == (options.class_set is None):
        raise Invalid("Send exactly one of classes and class_set.")
    query = SegmentQuery(
        source=source,
        classes=[prompt_of(entry) for entry in options.classes or ()],
        class_set=options.class_set,
        has_background=options.background,
        threshold=options.threshold,
        caption=options.caption,
        is_reproducible=options.reproducible,
    )
    render: Callable[[SegmentAnswer], bytes] = _png if media_type == PNG else partial(_body, form=options.format)
    answer, body = await tasks.segmentation.segment(query, budget, render, timeout_s=remaining_s)
    tell_timings(request, answer.timings_ms)
    return Response(body, media_type=media_type)


def prompt_of(entry: str | ClassObject) -> ClassPrompt:
    """What the task takes, from a name or an object with synonyms and templates."""
    if isinstance(entry, str):
        return ClassPrompt(name=entry)
    return ClassPrompt(name=entry.name, synonyms=entry.synonyms, templates=entry.templates)


def _png(answer: SegmentAnswer) -> bytes:
    return palette_png(answer.labels, [entry.name for entry in answer.classes])


def _body(answer: SegmentAnswer, form: str) -> bytes:
    height, width = answer.labels.shape
    found = sum(entry.region is not None for entry in answer.classes)
    if form == "png" and found * height * width > MAX_PNG_CELLS:
        raise TooMuchWork("So many PNG masks of this size are too much: ask for rle or label_map.")
    label_map = None
    if form == "label_map":
        label_map = base64.b64encode(_png(answer)).decode()
    response = SegmentResponse(
        width=width,
        height=height,
        fingerprint=answer.fingerprint,
        classes=[_class(entry, answer, form) for entry in answer.classes],
        label_map=label_map,
        timings_ms=dict(answer.timings_ms),
    )
    return response.model_dump_json(exclude=None if label_map else {"label_map"}).encode()


def _class(entry: ClassAnswer, answer: SegmentAnswer, form: str) -> SegmentedClass:
    height, width = answer.labels.shape
    mask: RleMask | str | None = None
    if entry.region is not None and form == "rle":
        mask = RleMask(size=(height, width), counts=entry.region.rle_counts)
    elif entry.region is not None and form == "png":
        mask = bit_png(answer.labels == entry.index)
    area = entry.region.area if entry.region else 0
    return SegmentedClass(
        index=entry.index,
        name=entry.name,
        area=area,
        fraction=area / (height * width),
        score=entry.score,
        bbox=entry.region.bbox if entry.region else None,
        mask=mask,
    )
