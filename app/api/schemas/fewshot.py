"""Wire format of few-shot episodes; how many ways, examples and queries there may be is in `app.domain`."""

from typing import Annotated

from pydantic import ConfigDict, Field

from app.api.schemas.images import HOUSE, LINE, ImageInput
from app.api.schemas.wire import EPISODE_PATTERN, Label, Reproducible, Timings, Wire
from models.heads.fewshot import Method

TopK = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class WayInput(Wire):
    """One class and its labelled examples."""

    label: Label
    support: Annotated[list[ImageInput], Field(min_length=1)]


class EpisodeOptions(Wire):
    """What the multipart part `options` may hold beside `labels`."""

    name: Label | None = None
    method: Method = "prototype"
    top_k: TopK | None = None
    abstain_below: Probability | None = None
    ttl_seconds: Annotated[float, Field(ge=1, le=315_360_000)] | None = None


class EpisodeForm(EpisodeOptions):
    """The multipart part `options`; `labels` name the parts `support`, in order."""

    labels: list[Label] | None = None


class OptionsForm(Wire):
    """The text fields of the multipart form: `options`, JSON of `EpisodeForm`."""

    options: str | None = None


class SupportForm(Wire):
    """The multipart part `options` of more support: `labels` name the parts `support`, in order."""

    labels: list[Label] | None = None


class SupportRequest(Wire):
    """More examples for the ways of an episode; a new label adds a way."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ways": [{"label": "house", "support": [HOUSE]}]}]})

    ways: Annotated[list[WayInput], Field(min_length=1)]


class WayLabel(Wire):
    """The label in a part's name."""

    label: Label


class EpisodeRequest(EpisodeOptions):
    """A new episode, and queries to answer at once."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "buildings",
                    "ways": [{"label": "house", "support": [HOUSE]}, {"label": "line", "support": [LINE]}],
                }
            ]
        }
    )

    ways: Annotated[list[WayInput], Field(min_length=2)]
    queries: list[ImageInput] = Field(default_factory=list)


class ClassifyOptions(Wire):
    """The fields of a multipart classify beside `query`."""

    top_k: TopK | None = None
    abstain_below: Probability | None = None
    reproducible: Reproducible = False


class ClassifyRequest(ClassifyOptions):
    """Pictures to classify."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"queries": [HOUSE], "top_k": 2}]})

    queries: Annotated[list[ImageInput], Field(min_length=1)]


class SupportReport(Wire):
    """One stored example."""

    id: str
    sha256: str
    image_url: str


class WayReport(Wire):
    """One class of a stored episode."""

    label: str
    shots: int
    support: list[SupportReport]


class LabelScore(Wire):
    """How likely one label is."""

    label: str
    probability: float


class PredictionReport(Wire):
    """One query's answer; abstained → `label` is null."""

    label: str | None
    probability: float
    abstained: bool
    scores: list[LabelScore]


class LeaveOneOutReport(Wire):
    """How well an episode classifies its own support, each example without itself."""

    accuracy: float
    ci95: tuple[float, float]
    confusion: dict[str, dict[str, int]]


class EpisodeReport(Wire):
    """A stored episode; `expires_at` in seconds since 1970."""

    id: str
    name: str | None
    version: int
    method: Method
    fingerprint: str
    expires_at: float | None
    ways: list[WayReport]
    leave_one_out: LeaveOneOutReport | None = None


class WayCount(Wire):
    """One class of a listed episode."""

    label: str
    shots: int


class EpisodeEntry(Wire):
    """An episode in a list: its examples are counted; `GET /fewshot/episodes/{id}` tells them."""

    id: str
    name: str | None
    version: int
    method: Method
    fingerprint: str
    expires_at: float | None
    ways: list[WayCount]


class EpisodeCreated(EpisodeReport):
    """The answer to a creation; `predictions` when queries came."""

    predictions: list[PredictionReport] | None = None
    timings_ms: Timings


class ClassifyResponse(Wire):
    """Predictions in the queries' order."""

    episode: str
    version: int
    predictions: list[PredictionReport]
    timings_ms: Timings


class EpisodePage(Wire):
    """Episodes by id; `next_cursor` is null on the last page."""

    episodes: list[EpisodeEntry]
    next_cursor: str | None


class EpisodePageQuery(Wire):
    """Query parameters of the episode list."""

    cursor: Annotated[str, Field(pattern=EPISODE_PATTERN)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
