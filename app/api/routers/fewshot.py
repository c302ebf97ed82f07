"""Few-shot episodes: create, classify, read, change, delete."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from app.api.auth import Scope, requires
from app.api.bodies import read_json
from app.api.deps import (
    MIN_SEQ,
    Call,
    CallDep,
    IfMatchDep,
    LimitsDep,
    RequiredIfMatchDep,
    TasksDep,
    image_link,
    set_version,
    written,
)
from app.api.idempotency import IdempotentRoute
from app.api.images import UNCHANGING, image_response
from app.api.openapi import request_body
from app.api.routers.fewshot_bodies import SUPPORT_FILES, QueriesInput, read_episode, read_queries, read_support
from app.api.schemas import fewshot as schemas
from app.api.schemas.galleries import SignedQuery
from app.api.schemas.wire import EPISODE_PATTERN, SUPPORT_PATTERN, link
from app.api.strict_json import json_response
from app.errors import Invalid
from app.stores.records.episode_rows import Episode, EpisodeChange
from app.tasks.fewshot import EpisodeRequest, WayRequest
from models.heads.fewshot import LeaveOneOut

router = APIRouter(tags=["fewshot"], route_class=IdempotentRoute, dependencies=MIN_SEQ)
EpisodePath = Annotated[str, Path(pattern=EPISODE_PATTERN, description="Id of an episode.")]
LabelPath = Annotated[str, Path(min_length=1, max_length=128, description="Label of a way.")]
SupportPath = Annotated[str, Path(pattern=SUPPORT_PATTERN, description="Id of a support image.")]


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
    page, next_cursor, total = await tasks.fewshot.page(after=query.cursor, limit=query.limit)

    def build() -> schemas.EpisodePage:
        entries = [schemas.episode_entry(episode) for episode in page]
        return schemas.EpisodePage(episodes=entries, next_cursor=next_cursor, total=total)

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
    added = await call.tasks.fewshot.add_support(
        episode_id, ways, call.budget, if_match=if_match, token=call.token, timeout_s=call.timeout_s
    )
    return _changed(call, response, added)


@router.delete("/fewshot/episodes/{episode_id}/support/{support_id}", summary="Remove a support image")
@requires(Scope.WRITE)
async def remove_support(
    response: Response, call: CallDep, episode_id: EpisodePath, support_id: SupportPath, if_match: RequiredIfMatchDep
) -> schemas.EpisodeReport:
    """The last support image of a way stays. Needs `If-Match`; returns the episode at its new version."""
    return _changed(call, response, await call.tasks.fewshot.remove_support(episode_id, support_id, if_match=if_match))


@router.delete("/fewshot/episodes/{episode_id}/ways/{label}", summary="Remove a way")
@requires(Scope.WRITE)
async def remove_way(
    response: Response, call: CallDep, episode_id: EpisodePath, label: LabelPath, if_match: RequiredIfMatchDep
) -> schemas.EpisodeReport:
    """The way goes with its support images; two ways stay. Needs `If-Match`; returns the episode at its new version.

    A label with a slash is no path: rename it first.
    """
    return _changed(call, response, await call.tasks.fewshot.remove_way(episode_id, label, if_match=if_match))


@router.patch(
    "/fewshot/episodes/{episode_id}",
    summary="Change an episode's name, method or labels",
    openapi_extra=request_body(json=schemas.EpisodePatch),
)
@requires(Scope.WRITE)
async def patch_episode(
    response: Response, call: CallDep, episode_id: EpisodePath, limits: LimitsDep, if_match: RequiredIfMatchDep
) -> schemas.EpisodeReport:
    """Nothing is encoded again. Needs `If-Match`; returns the episode at its new version."""
    wire = await read_json(call.request, schemas.EpisodePatch, limits)
    fields = wire.model_dump(include={"name", "method"}, exclude_unset=True)
    if fields.get("method", "") is None:
        raise Invalid("An episode has a method: leave it out, or name one.")
    if not (fields or wire.labels):
        raise Invalid("Send at least one of name, method and labels.")
    change = EpisodeChange(fields=fields, labels=wire.labels or {})
    return _changed(call, response, await call.tasks.fewshot.change(episode_id, change, if_match=if_match))


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


def _changed(call: Call, response: Response, changed: tuple[int, Episode, LeaveOneOut | None]) -> schemas.EpisodeReport:
    """The episode after a write, at its new version."""
    seq, episode, left_out = changed
    set_version(response, episode.version, seq=seq)
    return schemas.episode_report(episode, partial(image_link, call.request), left_out)
