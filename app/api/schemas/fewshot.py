"""Wire format of few-shot episodes; ways, examples and queries are bounded by `app.domain.Limits`."""

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from pydantic.config import JsonDict

from app.api.schemas.wire import (
    EPISODE_PATTERN,
    FINGERPRINT,
    FIRST_ERROR,
    LIMIT,
    LINE,
    ImageInput,
    Input,
    Label,
    Limited,
    Reproducible,
    Timings,
    Wire,
    examples,
)
from app.domain import HOUSE
from app.stores.records.episode_rows import Episode
from app.tasks.fewshot import Created, method_of
from models.heads.fewshot import LeaveOneOut, Method

TopK = Annotated[int, Field(ge=1, json_schema_extra={LIMIT: "max_ways"})]
Probability = Annotated[float, Field(ge=0, le=1)]


class WayInput(Input):
    """One class and its labelled examples."""

    label: Label
    support: Annotated[
        list[ImageInput],
        FIRST_ERROR,
        Field(min_length=1),
        Limited("max_support_per_way", "A way has 1 to {limit} support images."),
    ]


class EpisodeOptions(Input):
    """The options of a new episode; in a form, members of the part `options` beside `labels`."""

    name: Label | None = None
    method: Method = "prototype"
    top_k: TopK | None = None
    abstain_below: Probability | None = None
    ttl_seconds: Annotated[float, Field(ge=1, le=315_360_000)] | None = None  # at most ten years


Labels = Annotated[list[Label], FIRST_ERROR, Limited("max_form_parts", "A form has at most {limit} labels.")]


class SupportForm(Input):
    """The part `options` of a form that adds support; `labels` name the parts `support`, in order."""

    labels: Labels | None = None  # None where the parts' names have them


class EpisodeForm(EpisodeOptions, SupportForm):
    """The part `options` of a form that creates an episode."""


class OptionsForm(Input):
    """The text fields of a form: `options`, the JSON of an `EpisodeForm` or a `SupportForm`."""

    options: str | None = None


class SupportRequest(Input):
    """More examples for the ways of an episode; a new label adds a way."""

    model_config = examples({"ways": [{"label": "house", "support": [HOUSE]}]})

    ways: Annotated[
        list[WayInput], FIRST_ERROR, Field(min_length=1), Limited("max_ways", "An episode has at most {limit} ways.")
    ]


class WayLabel(Input):
    """The label in the name of a part `support:<label>`."""

    label: Label


class EpisodeRequest(EpisodeOptions):
    """A new episode, with queries to classify at once."""

    model_config = examples(
        {"name": "buildings", "ways": [{"label": "house", "support": [HOUSE]}, {"label": "line", "support": [LINE]}]}
    )

    ways: Annotated[
        list[WayInput], FIRST_ERROR, Field(min_length=2), Limited("max_ways", "An episode has 2 to {limit} ways.")
    ]
    queries: Annotated[list[ImageInput], FIRST_ERROR, Limited("max_queries", "At most {limit} queries a request.")] = (
        Field(default_factory=list)
    )


class ClassifyOptions(Input):
    """The text fields of a form that classifies."""

    top_k: TopK | None = None
    abstain_below: Probability | None = None
    reproducible: Reproducible = False


class ClassifyRequest(ClassifyOptions):
    """Images to classify."""

    model_config = examples({"queries": [HOUSE], "top_k": 2})

    queries: Annotated[
        list[ImageInput], FIRST_ERROR, Field(min_length=1), Limited("max_queries", "Send 1 to {limit} queries.")
    ]


class EpisodePatch(Input):
    """What changes of an episode; what is absent stays. `labels` maps old labels to new ones."""

    model_config = examples({"name": "towns", "labels": {"house": "town house"}}, {"method": "ridge"})

    name: Label | None = None  # null takes it away
    method: Method | None = None
    labels: Annotated[dict[str, Label], Field(min_length=1, max_length=512)] | None = None


_EXAMPLE: JsonDict = {"id": "s_0123456789abcdef", "sha256": "9f86d081884c", "image_url": "/fewshot/episodes/…/image"}


_SCORE: JsonDict = {"label": "house", "probability": 0.9}


class SupportReport(Wire):
    """One stored example."""

    id: str
    sha256: str
    image_url: str


class WayCount(Wire):
    """One class of an episode in a list, with the number of its examples."""

    label: str
    shots: int


class WayReport(WayCount):
    """One class of a stored episode."""

    support: list[SupportReport]


class LabelScore(Wire):
    """The probability of one label."""

    label: str
    probability: float


class PredictionReport(Wire):
    """The prediction for one query; `label` is null where the service abstained."""

    label: str | None
    probability: float
    abstained: bool
    scores: list[LabelScore]


class LeaveOneOutReport(Wire):
    """Leave-one-out result: every support image is classified by the other ones."""

    accuracy: float
    ci95: tuple[float, float]  # 95 % interval of the accuracy
    confusion: dict[str, dict[str, int]]  # true label, predicted label, count


class EpisodeFields(Wire):
    """The fields of an episode in every response; `expires_at` in seconds since 1970."""

    id: str
    name: str | None
    version: int
    method: str  # in a list it may be one that this release lacks
    fingerprint: str
    expires_at: float | None


class EpisodeReport(EpisodeFields):
    """A stored episode with its support images."""

    model_config = examples(
        {
            "id": "ep_0123456789abcdef01234567",
            "name": "buildings",
            "version": 1,
            "method": "prototype",
            "fingerprint": FINGERPRINT,
            "expires_at": None,
            "ways": [{"label": "house", "shots": 1, "support": [_EXAMPLE]}],
            "leave_one_out": None,
        }
    )

    method: Method
    ways: list[WayReport]
    leave_one_out: LeaveOneOutReport | None = None


class EpisodeEntry(EpisodeFields):
    """An episode in a list, with counts of its support images; `GET /fewshot/episodes/{id}` lists them."""

    ways: list[WayCount]


class EpisodeCreated(EpisodeReport):
    """A new episode, and predictions where the request had queries."""

    model_config = examples()

    predictions: list[PredictionReport] | None = None
    timings_ms: Timings


class ClassifyResponse(Wire):
    """Predictions, in the queries' order."""

    model_config = examples(
        {
            "episode": "ep_0123456789abcdef01234567",
            "version": 1,
            "predictions": [{"label": "house", "probability": 0.9, "abstained": False, "scores": [_SCORE]}],
            "timings_ms": {"decode": 1.2, "inference": 20.1, "head": 0.3, "total": 22.0},
        }
    )

    episode: str
    version: int
    predictions: list[PredictionReport]
    timings_ms: Timings


class EpisodePage(Wire):
    """Episodes, ordered by id; `next_cursor` is null on the last page, and `total` counts those of all pages."""

    episodes: list[EpisodeEntry]
    next_cursor: str | None
    total: int


class EpisodePageQuery(Input):
    """Query parameters of the episode list."""

    cursor: Annotated[str, Field(pattern=EPISODE_PATTERN)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def episode_report(
    episode: Episode, image_link: Callable[[str], str], left_out: LeaveOneOut | None = None
) -> EpisodeReport:
    """The wire form of a stored episode; `image_link` makes the address of an image's path."""
    url = f"/fewshot/episodes/{episode.id}/support"
    ways = [
        {
            "label": way.label,
            "shots": len(way.support),
            "support": [
                {"id": one.id, "sha256": one.sha256, "image_url": image_link(f"{url}/{one.id}/image")}
                for one in way.support
            ],
        }
        for way in episode.ways
    ]
    fields = {**_fields(episode), "method": method_of(episode)}
    return EpisodeReport.model_validate({**fields, "ways": ways, "leave_one_out": left_out})


def episode_entry(episode: Episode) -> EpisodeEntry:
    """The wire form of an episode in a list."""
    return EpisodeEntry.model_validate({**_fields(episode), "ways": list(episode.ways)})


def created_report(created: Created, image_link: Callable[[str], str]) -> EpisodeCreated:
    """As `episode_report`, of a new episode; `predictions` is unset where the request had no queries."""
    report = dict(episode_report(created.episode, image_link, created.leave_one_out))
    report["timings_ms"] = created.timings_ms
    if created.predictions is not None:
        report["predictions"] = created.predictions
    return EpisodeCreated.model_validate(report)


def _fields(episode: Episode) -> dict[str, object]:
    names = ("id", "name", "version", "method", "fingerprint", "expires_at")
    return {name: getattr(episode, name) for name in names}
