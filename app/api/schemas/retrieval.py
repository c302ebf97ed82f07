"""Wire format of `/retrieve`, `/retrieve/live` and `/embed`; `k` and the images are bounded by `app.domain.Limits`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from app.api.schemas.wire import (
    FINGERPRINT,
    FIRST_ERROR,
    LIMIT,
    Caption,
    FilterInput,
    GalleryName,
    ImageInput,
    Input,
    ItemId,
    Limited,
    Metadata,
    Problem,
    Reproducible,
    StrokesInput,
    Timings,
    Wire,
    examples,
    visible,
)
from app.domain import HOUSE

K = Annotated[int, Field(ge=1, json_schema_extra={LIMIT: "max_k"})]
Text = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(visible)]


class LikeInput(Input):
    """Items of the gallery that the results resemble (`positive`), or do not (`negative`)."""

    positive: Annotated[list[ItemId], FIRST_ERROR, Field(max_length=100)] = Field(default_factory=list)
    negative: Annotated[list[ItemId], FIRST_ERROR, Field(max_length=100)] = Field(default_factory=list)


class RetrieveOptions(Input):
    """Everything but sketch and image: the text fields of the multipart form."""

    text: Text | None = None
    text_weight: Annotated[float, Field(ge=0, le=1)] = 0.5  # 0: sketch and image only, 1: text only
    like: LikeInput | None = None
    filter: FilterInput | None = None
    gallery: GalleryName = "default"
    k: K = 10
    offset: Annotated[int, Field(ge=0, le=10_000)] = 0  # results before the first that is returned
    min_score: float | None = None  # results below it are left out
    caption: Caption | None = None
    reproducible: Reproducible = False


class RetrieveRequest(RetrieveOptions):
    """A search by sketch, image, text, liked items, or any combination of them."""

    model_config = examples({"sketch": HOUSE, "k": 5}, {"text": "a fish", "filter": {"kind": "icon"}})

    sketch: ImageInput | None = None  # finds what it shows
    image: ImageInput | None = None  # finds what looks like it, as `like` does with an item


class RetrieveResult(Wire):
    """One found item; `score` is the cosine similarity, or a weighted mean of those of several features."""

    id: str
    score: float
    metadata: Metadata
    image_url: str


class RetrieveResponse(Wire):
    """Results, best first; ties by id. `total` counts the items that pass the filter, whatever their score."""

    model_config = examples(
        {
            "gallery": "default",
            "index_seq": 1234,
            "fingerprint": FINGERPRINT,
            "results": [
                {
                    "id": "1f436",
                    "score": 0.83,
                    "metadata": {"name": "dog face"},
                    "image_url": "/galleries/default/items/1f436/image",
                }
            ],
            "total": 1651,
            "timings_ms": {"decode": 1.2, "queue": 0.4, "inference": 20.1, "search": 0.9, "total": 23.0},
        }
    )

    gallery: str
    index_seq: int  # the last write that the searched index contains
    fingerprint: str
    results: list[RetrieveResult]
    total: int
    timings_ms: Timings


class EmbedRequest(Input):
    """Images and texts to embed."""

    model_config = examples({"texts": ["a house"], "images": [HOUSE]})

    images: Annotated[
        list[ImageInput], FIRST_ERROR, Limited("max_request_images", "A request may hold {limit} images.", is_work=True)
    ] = Field(default_factory=list)
    texts: Annotated[list[Text], FIRST_ERROR, Field(max_length=2048)] = Field(default_factory=list)
    reproducible: Reproducible = False


class EmbedResponse(Wire):
    """Unit vectors in the space that `/retrieve` searches by sketch and text, in the request's order."""

    model_config = examples({"fingerprint": FINGERPRINT, "dimension": 2, "images": [], "texts": [[0.6, 0.8]]})

    fingerprint: str
    dimension: int
    images: list[list[float]]
    texts: list[list[float]]


class LiveAuth(Input):
    """The first message of a client that cannot send headers, such as a browser."""

    type: Literal["auth"]
    key: Annotated[str, Field(min_length=1, max_length=1000)]


class LiveQuery(StrokesInput):
    """The current drawing; it replaces a query of smaller `seq` that still waits."""

    type: Literal["query"]
    seq: Annotated[int, Field(ge=0, le=2**53 - 1)]  # exact in JavaScript
    text: Text | None = None
    gallery: GalleryName = "default"
    k: K = 10
    filter: FilterInput | None = None


class LiveProblem(Problem):
    """A problem, with the wait where the queue is full."""

    retry_after_s: float | None = None


class LiveError(Wire):
    """What was wrong with the message of this `seq`; null where it has none."""

    type: Literal["error"] = "error"
    seq: int | None
    problem: LiveProblem


class LiveResults(RetrieveResponse):
    """The results of the query of this `seq`."""

    model_config = examples()

    type: Literal["results"] = "results"
    seq: int
