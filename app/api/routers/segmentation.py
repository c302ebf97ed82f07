"""`POST /segment`."""

import base64
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.api.auth import Scope, ScopedRoute, requires
from app.api.bodies import read_body
from app.api.deps import MIN_SEQ, CallDep, LimitsDep
from app.api.forms import Form
from app.api.openapi import request_body
from app.api.schemas import segmentation as schemas
from app.api.strict_json import JSON, parse_json
from app.domain import Limits
from app.errors import Invalid, NotAcceptable, TooMuchWork
from app.stores.records.class_sets import ClassPrompt
from app.tasks.features import Source
from app.tasks.masks import MAX_CORNERS, bit_png, outlines, overlay_png, palette_png
from app.tasks.segmentation import ClassAnswer, SegmentAnswer, SegmentQuery

router = APIRouter(tags=["segmentation"], route_class=ScopedRoute, dependencies=MIN_SEQ)
PNG = "image/png"
MAX_MASK_CELLS = 512_000_000
"""Most pixels that the 1-bit masks, or the boxes of the polygons, of one response may have together."""
_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")

SegmentInput = tuple[schemas.SegmentOptions, Source]


async def read_segment(request: Request, limits: LimitsDep) -> SegmentInput:
    """The options and the image, of a JSON body or a form."""
    texts = dict.fromkeys(schemas.SegmentOptions.model_fields, ())
    return await read_body(request, schemas.SegmentRequest, _segment, limits, files={"image"}, texts=texts)


async def wanted_type(request: Request) -> str:
    """The media type of the response: JSON, or the label map as PNG where `Accept` names it.

    Raises:
        NotAcceptable: `Accept` allows neither.
    """
    return negotiated(request.headers.get("accept", "*/*"), JSON, PNG)


def negotiated(accept: str, *offers: str) -> str:
    """The offer that an `Accept` header prefers, the first of equal ones (RFC 9110, 12.5.1).

    Raises:
        NotAcceptable: it allows none.
    """
    quality = dict[str, float]()
    for entry in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        given = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        quality[kind] = float(given) if _QUALITY.fullmatch(given) else 0.0
    found = [next((quality[r] for r in (o, f"{o.partition('/')[0]}/*", "*/*") if r in quality), 0.0) for o in offers]
    if max(found) <= 0:
        raise NotAcceptable(f"Accept must allow {' or '.join(offers)}.")
    return offers[found.index(max(found))]


@router.post(
    "/segment",
    response_model=schemas.SegmentResponse | schemas.CocoDocument,
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
    """Disjoint masks at the input's size; `Accept: image/png` returns the label map as a palette PNG.

    `format=coco` returns a COCO document instead, and `format=overlay` a PNG of the image under coloured masks.
    """
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
        min_area=options.min_area,
    )
    render: Callable[[SegmentAnswer], bytes] = (
        _png if media_type == PNG else partial(_body, form=options.format, name=getattr(source, "name", ""))
    )
    if options.format == "overlay":
        media_type, render = negotiated(call.request.headers.get("accept", "*/*"), PNG), _overlay
    # The task renders in its worker pool: encoding large masks takes milliseconds.
    answer, body = await call.tasks.segmentation.segment(query, call.budget, render, timeout_s=call.timeout_s)
    call.add_timings(answer.timings_ms)
    return Response(body, media_type=media_type)


def _segment(body: schemas.SegmentRequest | Form, limits: Limits) -> SegmentInput:
    if not isinstance(body, Form):
        return body, body.image.source
    image = body.one_image("image")
    if image is None:
        raise Invalid("The form needs a part 'image'.")
    classes = _classes(body, limits)
    fields = body.fields(repeated="classes") | ({"classes": classes} if classes else {})
    return schemas.SegmentOptions.model_validate(fields, context=limits), image


def _classes(form: Form, limits: Limits) -> Sequence[object]:
    """The classes of a form's fields: names and JSON objects, or one field with a JSON array or with commas."""
    texts, parsed = form.repeated("classes"), partial(parse_json, what="The JSON of the field 'classes'")
    if len(texts) == 1 and texts[0].lstrip().startswith("["):
        found = parsed(texts[0], limits.max_json_values)
        return found if isinstance(found, list) else []
    if len(texts) == 1 and not texts[0].lstrip().startswith("{"):
        return [name.strip() for name in texts[0].split(",")]
    if len(texts) > limits.max_classes:
        raise Invalid(f"At most {limits.max_classes} classes a request.")
    # All objects share one limit.
    are_json = [text.lstrip().startswith("{") for text in texts]
    most = limits.max_json_values // max(1, sum(are_json))
    return [parsed(text, most) if is_json else text for text, is_json in zip(texts, are_json, strict=True)]


def prompt_of(entry: str | schemas.ClassObject) -> ClassPrompt:
    """The class that a name, or an object with synonyms and templates, describes."""
    if isinstance(entry, str):
        return ClassPrompt(name=entry)
    return ClassPrompt(name=entry.name, synonyms=entry.synonyms, templates=entry.templates)


def _png(answer: SegmentAnswer) -> bytes:
    return palette_png(answer.labels, [entry.name for entry in answer.classes])


def _overlay(answer: SegmentAnswer) -> bytes:
    return overlay_png(answer.labels, [entry.name for entry in answer.classes], answer.image)


def _body(answer: SegmentAnswer, form: str, name: str) -> bytes:
    if form == "coco":
        return schemas.CocoDocument.model_validate(_coco(answer, name)).model_dump_json().encode()
    height, width = answer.labels.shape
    found = [entry.region for entry in answer.classes if entry.region is not None]
    # One bit a pixel and class, or a pass over the pixels of its box: checked before any mask is encoded.
    cells = len(found) * height * width if form == "png" else sum(one.bbox[2] * one.bbox[3] for one in found)
    if form in ("png", "polygons") and cells > MAX_MASK_CELLS:
        raise TooMuchWork(f"Masks of so many classes are too large as {form}: request rle or label_map.")
    label_map = base64.b64encode(_png(answer)).decode() if form == "label_map" else None
    response = schemas.SegmentResponse(
        width=width,
        height=height,
        fingerprint=answer.fingerprint,
        classes=_segmented(answer, form),
        label_map=label_map,
        timings_ms=dict(answer.timings_ms),
    )
    # `label_map` appears only where it was requested; null `mask` and `bbox` always do.
    return response.model_dump_json(exclude=None if label_map else {"label_map"}).encode()


def _segmented(answer: SegmentAnswer, form: str) -> list[schemas.SegmentedClass]:
    found, corners = [], 0
    for entry in answer.classes:
        found.append(_class(entry, answer, form, max_corners=MAX_CORNERS - corners))
        corners += sum(len(ring) for ring in found[-1].mask) // 2 if isinstance(found[-1].mask, list) else 0
    return found


def _class(entry: ClassAnswer, answer: SegmentAnswer, form: str, *, max_corners: int) -> schemas.SegmentedClass:
    height, width = answer.labels.shape
    region = entry.region
    mask: schemas.Mask | None = None
    if region is not None and form == "rle":
        mask = schemas.RleMask(size=(height, width), counts=region.rle_counts)
    elif region is not None and form == "polygons":
        x, y, w, h = region.bbox
        mask = outlines(answer.labels[y : y + h, x : x + w] == entry.index, x, y, max_corners=max_corners)
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


def _coco(answer: SegmentAnswer, name: str) -> dict[str, object]:
    height, width = answer.labels.shape
    annotations = [
        {
            "id": entry.index,
            "image_id": 1,
            "category_id": entry.index,
            "segmentation": {"size": (height, width), "counts": entry.region.rle_counts},
            "area": entry.region.area,
            "bbox": entry.region.bbox,
            "iscrowd": 0,
            "score": entry.score,
        }
        for entry in answer.classes
        if entry.region is not None
    ]
    return {
        "info": {"description": "Vermouth", "version": answer.fingerprint},
        "images": [{"id": 1, "width": width, "height": height, "file_name": name}],
        "annotations": annotations,
        "categories": [{"id": entry.index, "name": entry.name} for entry in answer.classes],
    }
