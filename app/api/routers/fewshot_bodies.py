"""Bodies of the few-shot routes, JSON or a form, as what their task takes."""

from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import unquote

from fastapi import Request

from app.api.bodies import out_of_bounds, read_body
from app.api.deps import LimitsDep
from app.api.forms import Form
from app.api.schemas import fewshot as schemas
from app.domain import Limits, label_key
from app.errors import Invalid, Malformed
from app.tasks.features import Source
from app.tasks.fewshot import EpisodeRequest, WayRequest

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
    support: dict[str, tuple[str, list[Source]]] = {}  # the first spelling of a label stays
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
        support.setdefault(label_key(label), (label, []))[1].append(image)
    if count != len(labels):
        raise Invalid(f"options.labels has {len(labels)} entries for {count} parts 'support'.")
    return options, [WayRequest(label=label, support=images) for label, images in support.values()]


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
    if len({label_key(way.label) for way in ways}) < len(ways):
        raise Invalid("Labels must be unique; spaces around them and the Unicode form of their letters do not count.")
    for position, way in enumerate(ways):
        if len(way.support) > limits.max_support_per_way:
            detail = f"A way has 1 to {limits.max_support_per_way} support images."
            raise out_of_bounds(f"ways[{position}].support", detail)


def _check_top_k(top_k: int | None, limits: Limits) -> None:
    if top_k is not None and top_k > limits.max_ways:
        raise out_of_bounds("top_k", f"top_k is at most {limits.max_ways}.")
