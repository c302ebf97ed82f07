"""`POST /retrieve` and `POST /embed`."""

from typing import Annotated

from fastapi import Depends, Request

from app.api.auth import Scope, requires
from app.api.bodies import (
    JSON,
    MULTIPART,
    check_content_type,
    out_of_bounds,
    parse_json,
    read_filter,
    read_json,
    read_multipart,
    source_of,
)
from app.api.conditional import wait_for_min_seq
from app.api.deps import LimitsDep, PixelBudgetDep, RemainingDep, TasksDep, add_timings, new_router
from app.api.openapi import request_body
from app.api.schemas import retrieval as schemas
from app.domain import Limits
from app.errors import FieldError, Invalid, TooMuchWork
from app.tasks.inputs import Source
from app.tasks.retrieval import RetrieveAnswer, RetrieveQuery

router = new_router("retrieval", dependencies=[Depends(wait_for_min_seq)])

EmbedInput = tuple[list[Source], schemas.EmbedRequest]


async def read_query(request: Request, limits: LimitsDep) -> RetrieveQuery:
    """The search, of a JSON body or a form."""
    if check_content_type(request, JSON, MULTIPART) == JSON:
        wire = await read_json(request, schemas.RetrieveRequest)
        return query_of(wire, None if wire.sketch is None else source_of(wire.sketch), limits)
    form = await read_multipart(request, limits, files={"sketch"})
    fields: dict[str, object] = {**form.scalars()}
    # Structured fields of a form are JSON texts.
    fields.update({name: parse_json(str(fields[name])) for name in ("like", "filter") if name in fields})
    return query_of(schemas.RetrieveOptions.model_validate(fields), form.one_image("sketch"), limits)


async def read_embed(request: Request, limits: LimitsDep) -> EmbedInput:
    """The images, texts and options, of a JSON body or a form."""
    if check_content_type(request, JSON, MULTIPART) == JSON:
        wire = await read_json(request, schemas.EmbedRequest)
        # Counted before any image is converted.
        if len(wire.images) > limits.max_request_images:
            detail = f"A request may hold {limits.max_request_images} images."
            raise TooMuchWork(detail, errors=[FieldError(field="images", message=detail)])
        sources = [source_of(image) for image in wire.images]
    else:
        form = await read_multipart(request, limits, files={"image"})
        # Unknown and repeated fields are errors in a form as in JSON.
        form.scalars(repeated={"texts"})
        unknown = {name: value for name, value in form.texts if name != "texts"}
        wire = schemas.EmbedRequest.model_validate({"texts": form.repeated("texts"), **unknown})
        sources = [*form.images("image")]
    if not sources and not wire.texts:
        raise Invalid("Send at least one of images and texts.")
    return sources, wire


@router.post(
    "/retrieve",
    summary="Search a gallery by sketch, text and liked items",
    openapi_extra=request_body(json=schemas.RetrieveRequest, form=schemas.RetrieveOptions, files={"sketch": False}),
)
@requires(Scope.READ)
async def retrieve(
    request: Request,
    tasks: TasksDep,
    query: Annotated[RetrieveQuery, Depends(read_query)],
    budget: PixelBudgetDep,
    remaining_s: RemainingDep,
) -> schemas.RetrieveResponse:
    """The k nearest items, best first."""
    answer = await tasks.retrieval.retrieve(query, budget, timeout_s=remaining_s)
    add_timings(request, answer.timings_ms)
    return response_of(answer)


@router.post(
    "/embed",
    summary="Vectors of images and texts",
    openapi_extra=request_body(json=schemas.EmbedRequest, files={"image": True}),
)
@requires(Scope.READ)
async def embed(
    request: Request,
    tasks: TasksDep,
    inputs: Annotated[EmbedInput, Depends(read_embed)],
    budget: PixelBudgetDep,
    remaining_s: RemainingDep,
) -> schemas.EmbedResponse:
    """Unit vectors in the space that `/retrieve` searches."""
    sources, wire = inputs
    answer = await tasks.retrieval.embed(
        sources, wire.texts, budget, timeout_s=remaining_s, is_reproducible=wire.reproducible
    )
    add_timings(request, answer.timings_ms)
    return schemas.EmbedResponse(
        fingerprint=answer.fingerprint,
        dimension=answer.dimension,
        images=answer.images.tolist(),
        texts=answer.texts.tolist(),
    )


def query_of(wire: schemas.RetrieveOptions, sketch: Source | None, limits: Limits) -> RetrieveQuery:
    """The search that options and a sketch describe. Raises Invalid."""
    like = wire.like or schemas.LikeInput()
    if sketch is None and wire.text is None and not (like.positive or like.negative):
        raise Invalid("Send at least one of sketch, text and like.")
    # The setting bounds k, so that raising it needs no change of a schema.
    if wire.k > limits.max_k:
        raise out_of_bounds("k", f"k is at most {limits.max_k}.")
    return RetrieveQuery(
        sketch=sketch,
        text=wire.text,
        text_weight=wire.text_weight,
        gallery=wire.gallery,
        k=wire.k,
        min_score=wire.min_score,
        like=like.positive,
        unlike=like.negative,
        where=read_filter(wire.filter),
        caption=wire.caption,
        is_reproducible=wire.reproducible,
    )


def response_of(answer: RetrieveAnswer) -> schemas.RetrieveResponse:
    """The wire form of an answer."""
    return schemas.RetrieveResponse(
        gallery=answer.gallery,
        index_seq=answer.index_seq,
        fingerprint=answer.fingerprint,
        results=[
            schemas.RetrieveResult(
                id=found.external_id,
                score=found.score,
                metadata=dict(found.metadata),
                image_url=f"/galleries/{answer.gallery}/items/{found.external_id}/image",
            )
            for found in answer.results
        ],
        timings_ms=dict(answer.timings_ms),
    )
