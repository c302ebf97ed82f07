"""`POST /retrieve` and `POST /embed`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from starlette.requests import HTTPConnection

from app.api.auth import Scope, ScopedRoute, requires
from app.api.bodies import out_of_bounds, read_body, read_filter
from app.api.deps import MIN_SEQ, CallDep, LimitsDep, image_link
from app.api.forms import Form
from app.api.openapi import request_body
from app.api.schemas import retrieval as schemas
from app.api.strict_json import json_response
from app.domain import Limits
from app.errors import Invalid
from app.tasks.features import Source
from app.tasks.retrieval import RetrieveAnswer, RetrieveQuery

router = APIRouter(tags=["retrieval"], route_class=ScopedRoute, dependencies=MIN_SEQ)
EmbedInput = tuple[list[Source], schemas.EmbedRequest]


async def read_query(request: Request, limits: LimitsDep) -> RetrieveQuery:
    """The search, of a JSON body or a form."""
    files, texts = {"sketch", "image"}, dict.fromkeys(schemas.RetrieveOptions.model_fields, ())
    return await read_body(request, schemas.RetrieveRequest, _query, limits, files=files, texts=texts)


async def read_embed(request: Request, limits: LimitsDep) -> EmbedInput:
    """The images, texts and options, of a JSON body or a form."""
    texts = {"texts": (), "reproducible": ()}
    return await read_body(request, schemas.EmbedRequest, _embed, limits, files={"image"}, texts=texts)


@router.post(
    "/retrieve",
    response_model=schemas.RetrieveResponse,
    summary="Search a gallery by sketch, image, text and liked items",
    openapi_extra=request_body(
        json=schemas.RetrieveRequest, form=schemas.RetrieveOptions, files={"sketch": False, "image": False}
    ),
)
@requires(Scope.READ)
async def retrieve(call: CallDep, query: Annotated[RetrieveQuery, Depends(read_query)]) -> Response:
    """The k nearest items, best first."""
    answer = await call.tasks.retrieval.retrieve(query, call.budget, timeout_s=call.timeout_s)
    call.add_timings(answer.timings_ms)
    return await json_response(call.request, len(answer.results), lambda: response_of(answer, call.request))


@router.post(
    "/embed",
    response_model=schemas.EmbedResponse,
    summary="Vectors of images and texts",
    openapi_extra=request_body(json=schemas.EmbedRequest, files={"image": True}),
)
@requires(Scope.READ)
async def embed(call: CallDep, inputs: Annotated[EmbedInput, Depends(read_embed)]) -> Response:
    """Unit vectors in the space that `/retrieve` searches by sketch and text."""
    sources, wire = inputs
    answer = await call.tasks.retrieval.embed(
        sources, wire.texts, call.budget, timeout_s=call.timeout_s, is_reproducible=wire.reproducible
    )
    call.add_timings(answer.timings_ms)

    def build() -> schemas.EmbedResponse:
        # Not validated: millions of numbers in one call.
        return schemas.EmbedResponse.model_construct(
            fingerprint=answer.fingerprint,
            dimension=answer.dimension,
            images=[row.tolist() for row in answer.images],
            texts=[row.tolist() for row in answer.texts],
        )

    return await json_response(call.request, len(sources) + len(wire.texts), build)


def query_of(
    wire: schemas.RetrieveOptions, limits: Limits, *, sketch: Source | None = None, image: Source | None = None
) -> RetrieveQuery:
    """The search that options, a sketch and an image describe. Raises Invalid."""
    like = wire.like or schemas.LikeInput()
    if sketch is None and image is None and wire.text is None and not (like.positive or like.negative):
        raise Invalid("Send at least one of sketch, image, text and like.")
    # The setting bounds k, so that raising it needs no change of a schema.
    if wire.k > limits.max_k:
        raise out_of_bounds("k", f"k is at most {limits.max_k}.")
    return RetrieveQuery(
        sketch=sketch,
        image=image,
        text=wire.text,
        text_weight=wire.text_weight,
        gallery=wire.gallery,
        k=wire.k,
        offset=wire.offset,
        min_score=wire.min_score,
        like=like.positive,
        unlike=like.negative,
        where=read_filter(wire.filter),
        caption=wire.caption,
        is_reproducible=wire.reproducible,
    )


def _query(body: schemas.RetrieveRequest | Form, limits: Limits) -> RetrieveQuery:
    if isinstance(body, Form):
        options = schemas.RetrieveOptions.model_validate(body.fields(json=["like", "filter"]), context=limits)
        return query_of(options, limits, sketch=body.one_image("sketch"), image=body.one_image("image"))
    sketch, image = (None if one is None else one.source for one in (body.sketch, body.image))
    return query_of(body, limits, sketch=sketch, image=image)


def _embed(body: schemas.EmbedRequest | Form, limits: Limits) -> EmbedInput:
    sources: list[Source]
    if isinstance(body, Form):
        sources = [*body.images("image")]
        texts = body.repeated("texts")
        # Unknown and repeated fields are errors in a form as in JSON.
        fields = {"texts": texts, **body.fields(repeated="texts")}
        wire = schemas.EmbedRequest.model_validate(fields, context=limits)
    else:
        wire, sources = body, [image.source for image in body.images]
    if not sources and not wire.texts:
        raise Invalid("Send at least one of images and texts.")
    return sources, wire


def response_of(answer: RetrieveAnswer, connection: HTTPConnection) -> schemas.RetrieveResponse:
    """The wire form of an answer to a connection."""
    return schemas.RetrieveResponse(
        gallery=answer.gallery,
        index_seq=answer.index_seq,
        fingerprint=answer.fingerprint,
        results=[
            schemas.RetrieveResult(
                id=found.external_id,
                score=found.score,
                metadata=dict(found.metadata),
                image_url=image_link(connection, f"/galleries/{answer.gallery}/items/{found.external_id}/image"),
            )
            for found in answer.results
        ],
        total=answer.total,
        timings_ms=dict(answer.timings_ms),
    )
