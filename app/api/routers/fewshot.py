"""Few-shot episodes: create, classify, read, delete."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, TypeVar
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from app.api.auth import Scope, requires
from app.api.bodies import out_of_bounds, read_body
from app.api.deps import (
    MIN_SEQ,
    CallDep,
    IfMatchDep,
    LimitsDep,
    RequiredIfMatchDep,
    TasksDep,
    image_link,
    link,
    set_version,
    written,
)
from app.api.forms import Form
from app.api.idempotency import IdempotentRoute
from app.api.images import UNCHANGING, image_response
from app.api.openapi import request_body
from app.api.schemas import fewshot as schemas
from app.api.schemas.galleries import SignedQuery
from app.api.schemas.wire import EPISODE_PATTERN, SUPPORT_PATTERN
from app.api.strict_json import json_response
from app.domain import Limits
from app.errors import Invalid, Malformed
from app.tasks.features import Source
from app.tasks.fewshot import EpisodeRequest, WayRequest

router = APIRouter(tags=["fewshot"], route_class=IdempotentRoute, dependencies=MIN_SEQ)
EpisodePath = Annotated[str, Path(pattern=EPISODE_PATTERN, description="Id of an episode.")]
SupportPath = Annotated[str, Path(pattern=SUPPORT_PATTERN, description="Id of a support image.")]
QueriesInput = tuple[schemas.ClassifyOptions, Sequence[Source]]
Options = TypeVar("Options", bound=schemas.SupportForm)
SUPPORT = "support"
SUPPORT_NAMES = frozenset({SUPPORT, f"{SUPPORT}:"})
SUPPORT_FILES = {SUPPORT: True, "support:<label>": True}


async def read_episode(request: Request, limits: LimitsDep) -> EpisodeRequest:
    """The new episode, of a JSON body or a form."""
    files, texts = {*SUPPORT_NAMES, "query"}, {"options": schemas.EpisodeForm.model_fields.keys()}
    return await read_body(request, schemas.EpisodeRequest, _episode, limits, files=files, texts=texts)


async def read_support(request: Request, limits: LimitsDep) -> Sequence[WayRequest]:
    """The ways and support images to add, of a JSON body or a form."""
    texts = {"options": schemas.SupportForm.model_fields.keys()}
    return await read_body(request, schemas.SupportRequest, _support, limits, files=SUPPORT_NAMES, texts=texts)


async def read_queries(request: Request, limits: LimitsDep) -> QueriesInput:
    """The options and the images to classify, of a JSON body or a form."""
    texts = dict.fromkeys(schemas.ClassifyOptions.model_fields, ())
    return await read_body(request, schemas.ClassifyRequest, _queries, limits, files={"query", "image"}, texts=texts)


@router.post(
    "/fewshot/episodes",
    response_model_exclude_unset=True,
    status_code=201,
    summary="Create an episode from labelled examples",
    openapi_extra=request_body(
        json=schemas.EpisodeRequest, form=schemas.OptionsForm, files={**SUPPORT_FILES, "query": True}
    ),
)
@requires(Scope.WRITE)
async def create_episode(
    response: Response, call: CallDep, episode: Annotated[EpisodeRequest, Depends(read_episode)]
) -> schemas.EpisodeCreated:
    """Needs two ways or more; the response has `predictions` where the request has `queries`."""
    created = await call.tasks.fewshot.create(episode, call.budget, token=call.token, timeout_s=call.timeout_s)
    call.add_timings(created.timings_ms)
    response.headers["Location"] = link(call.request, f"/fewshot/episodes/{created.episode.id}")
    set_version(response, created.episode.version, seq=created.seq)
    return schemas.created_report(created, partial(image_link, call.request))


@router.post(
    "/fewshot/episodes/{episode_id}/classify",
    response_model=schemas.ClassifyResponse,
    summary="Classify images by an episode",
    openapi_extra=request_body(json=schemas.ClassifyRequest, form=schemas.ClassifyOptions, files={"query": True}),
)
@requires(Scope.READ)
async def classify(
    call: CallDep, episode_id: EpisodePath, inputs: Annotated[QueriesInput, Depends(read_queries)]
) -> Response:
    """Predictions, in the queries' order; below `abstain_below` the label is null."""
    options, queries = inputs
    answer = await call.tasks.fewshot.classify(
        episode_id,
        queries,
        call.budget,
        top_k=options.top_k,
        abstain_below=options.abstain_below,
        timeout_s=call.timeout_s,
        is_reproducible=options.reproducible,
    )
    call.add_timings(answer.timings_ms)

    def build() -> schemas.ClassifyResponse:
        return schemas.ClassifyResponse(
            episode=answer.episode.id,
            version=answer.episode.version,
            predictions=[schemas.PredictionReport.model_validate(one) for one in answer.predictions],
            timings_ms=dict(answer.timings_ms),
        )

    return await json_response(call.request, len(answer.predictions) * len(answer.episode.ways) // 64, build)


@router.get("/fewshot/episodes", response_model=schemas.EpisodePage, summary="Episodes by id, in pages")
@requires(Scope.READ)
async def list_episodes(
    request: Request, tasks: TasksDep, query: Annotated[schemas.EpisodePageQuery, Query()]
) -> Response:
    """One page; pass `next_cursor` as `cursor` for the next."""
    page, next_cursor = await tasks.fewshot.page(after=query.cursor, limit=query.limit)

    def build() -> schemas.EpisodePage:
        entries = [schemas.episode_entry(episode) for episode in page]
        return schemas.EpisodePage(episodes=entries, next_cursor=next_cursor)

    return await json_response(request, sum(len(episode.ways) for episode in page) // 64, build)


@router.get("/fewshot/episodes/{episode_id}", summary="One episode")
@requires(Scope.READ)
async def get_episode(
    request: Request, response: Response, tasks: TasksDep, episode_id: EpisodePath
) -> schemas.EpisodeReport:
    """The ways of an episode and their support images."""
    episode, left_out = await tasks.fewshot.get(episode_id)
    set_version(response, episode.version)
    return schemas.episode_report(episode, partial(image_link, request), left_out)


@router.post(
    "/fewshot/episodes/{episode_id}/support",
    summary="Add support images to an episode",
    openapi_extra=request_body(json=schemas.SupportRequest, form=schemas.OptionsForm, files=SUPPORT_FILES),
)
@requires(Scope.WRITE)
async def add_support(
    response: Response,
    call: CallDep,
    episode_id: EpisodePath,
    ways: Annotated[Sequence[WayRequest], Depends(read_support)],
    if_match: RequiredIfMatchDep,
) -> schemas.EpisodeReport:
    """A new label adds a way. Needs `If-Match`; returns the episode at its new version."""
    seq, episode, left_out = await call.tasks.fewshot.add_support(
        episode_id, ways, call.budget, if_match=if_match, token=call.token, timeout_s=call.timeout_s
    )
    set_version(response, episode.version, seq=seq)
    return schemas.episode_report(episode, partial(image_link, call.request), left_out)


@router.delete("/fewshot/episodes/{episode_id}/support/{support_id}", summary="Remove a support image")
@requires(Scope.WRITE)
async def remove_support(
    response: Response, call: CallDep, episode_id: EpisodePath, support_id: SupportPath, if_match: RequiredIfMatchDep
) -> schemas.EpisodeReport:
    """The last support image of a way stays. Needs `If-Match`; returns the episode at its new version."""
    seq, episode, left_out = await call.tasks.fewshot.remove_support(episode_id, support_id, if_match=if_match)
    set_version(response, episode.version, seq=seq)
    return schemas.episode_report(episode, partial(image_link, call.request), left_out)


@router.get(
    "/fewshot/episodes/{episode_id}/support/{support_id}/image",
    summary="A support image",
    response_class=Response,
    responses={200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}},
)
@requires(Scope.READ)
async def get_support_image(
    tasks: TasksDep, episode_id: EpisodePath, support_id: SupportPath, query: Annotated[SignedQuery, Query()]
) -> Response:
    """The image as it was stored."""
    del query  # read by `ScopedRoute`
    image = await tasks.fewshot.support_image(episode_id, support_id)
    read = tasks.fewshot.read_part
    return image_response(image.blob, read, media_type=image.media_type, tag=image.sha256, caching=UNCHANGING)


@router.delete("/fewshot/episodes/{episode_id}", status_code=204, summary="Delete an episode")
@requires(Scope.WRITE)
async def delete_episode(tasks: TasksDep, episode_id: EpisodePath, if_match: IfMatchDep) -> Response:
    """The episode goes together with its support images; with `If-Match`, at that version only."""
    return written(await tasks.fewshot.delete(episode_id, if_match=if_match))


def _episode(body: schemas.EpisodeRequest | Form, limits: Limits) -> EpisodeRequest:
    wire: schemas.EpisodeOptions
    queries: Sequence[Source]
    if isinstance(body, Form):
        wire, ways = _options_and_ways(body, schemas.EpisodeForm, limits)
        queries = body.images("query")
    else:
        wire, ways, queries = body, _ways(body), [image.source for image in body.queries]
    if not 2 <= len(ways) <= limits.max_ways:
        raise out_of_bounds("ways", f"An episode has 2 to {limits.max_ways} ways.")
    _check_ways(ways, limits)
    if len(queries) > limits.max_queries:
        raise out_of_bounds("queries", f"At most {limits.max_queries} queries a request.")
    _check_top_k(wire.top_k, limits)
    return EpisodeRequest(
        name=wire.name,
        method=wire.method,
        ways=ways,
        queries=queries,
        top_k=wire.top_k,
        abstain_below=wire.abstain_below,
        ttl_s=wire.ttl_seconds,
    )


def _support(body: schemas.SupportRequest | Form, limits: Limits) -> Sequence[WayRequest]:
    ways = _options_and_ways(body, schemas.SupportForm, limits)[1] if isinstance(body, Form) else _ways(body)
    _check_ways(ways, limits)
    return ways


def _queries(body: schemas.ClassifyRequest | Form, limits: Limits) -> QueriesInput:
    wire: schemas.ClassifyOptions
    queries: Sequence[Source]
    if isinstance(body, Form):
        # Whoever sends one image calls it so.
        queries = [image for _, image in body.files]
        wire = schemas.ClassifyOptions.model_validate(body.fields(), context=limits)
    else:
        wire, queries = body, [image.source for image in body.queries]
    if not 1 <= len(queries) <= limits.max_queries:
        raise out_of_bounds("queries", f"Send 1 to {limits.max_queries} queries.")
    _check_top_k(wire.top_k, limits)
    return wire, queries


def _ways(wire: schemas.EpisodeRequest | schemas.SupportRequest) -> list[WayRequest]:
    return [WayRequest(label=way.label, support=[image.source for image in way.support]) for way in wire.ways]


def _options_and_ways(form: Form, shape: type[Options], limits: Limits) -> tuple[Options, list[WayRequest]]:
    """The part `options` of a form, and its ways, ordered by the first part of each label."""
    fields = form.fields(json=["options"])
    options = shape.model_validate(fields.pop("options", {}), context=limits)
    schemas.OptionsForm.model_validate(fields)
    support: dict[str, list[Source]] = {}
    labels, count = options.labels or [], 0
    for name, image in form.files:
        if name == "query":
            continue
        # Either all labels are in the parts' names, or they follow the parts in `options.labels`.
        if name == SUPPORT:
            if count == len(labels):
                raise Invalid("options.labels needs a label for each part 'support'.")
            label = labels[count]
            count += 1
        else:
            label = _label(name.removeprefix(f"{SUPPORT}:"))
        support.setdefault(label, []).append(image)
    if count != len(labels):
        raise Invalid(f"options.labels has {len(labels)} entries for {count} parts 'support'.")
    return options, [WayRequest(label=label, support=images) for label, images in support.items()]


def _label(text: str) -> str:
    try:
        return schemas.WayLabel(label=unquote(text, errors="strict")).label
    except UnicodeDecodeError as err:
        raise Malformed("A label is not percent-encoded UTF-8.") from err


def _check_ways(ways: Sequence[WayRequest], limits: Limits) -> None:
    if not ways:
        raise Invalid("Send at least one support image.")
    if len(ways) > limits.max_ways:
        raise out_of_bounds("ways", f"An episode has at most {limits.max_ways} ways.")
    # Equal labels in a form are one way already; in JSON they are a mistake.
    if len({way.label for way in ways}) < len(ways):
        raise Invalid("Labels must be unique.")
    for position, way in enumerate(ways):
        if len(way.support) > limits.max_support_per_way:
            detail = f"A way has 1 to {limits.max_support_per_way} support images."
            raise out_of_bounds(f"ways[{position}].support", detail)


def _check_top_k(top_k: int | None, limits: Limits) -> None:
    if top_k is not None and top_k > limits.max_ways:
        raise out_of_bounds("top_k", f"top_k is at most {limits.max_ways}.")
