"""Wire format of `/retrieve` and `/embed`; how large `k` and how many images there may be is in `app.domain`."""

from typing import Annotated

from pydantic import ConfigDict, Field

from app.api.schemas.images import HOUSE, ImageInput
from app.api.schemas.wire import Caption, FilterInput, GalleryName, ItemId, Metadata, Reproducible, Timings, Wire

Text = Annotated[str, Field(min_length=1, max_length=2000)]


class LikeInput(Wire):
    """Items of the gallery to go towards (`positive`) and away from (`negative`)."""

    positive: Annotated[list[ItemId], Field(max_length=100)] = Field(default_factory=list)
    negative: Annotated[list[ItemId], Field(max_length=100)] = Field(default_factory=list)


class RetrieveOptions(Wire):
    """Everything but the sketch: the fields of the multipart form."""

    text: Text | None = None
    text_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    like: LikeInput | None = None
    filter: FilterInput | None = None
    gallery: GalleryName = "default"
    k: Annotated[int, Field(ge=1)] = 10
    min_score: float | None = None
    caption: Caption | None = None
    reproducible: Reproducible = False


class RetrieveRequest(RetrieveOptions):
    """Search by sketch, text, liked items, or all of them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"sketch": HOUSE, "k": 5}, {"text": "a fish", "filter": {"kind": "icon"}}]}
    )

    sketch: ImageInput | None = None


class RetrieveResult(Wire):
    """One found item; `score` is the cosine similarity."""

    id: str
    score: float
    metadata: Metadata
    image_url: str


class RetrieveResponse(Wire):
    """Results, best first; ties by id."""

    gallery: str
    index_seq: int
    fingerprint: str
    results: list[RetrieveResult]
    timings_ms: Timings


class EmbedRequest(Wire):
    """Pictures and texts to embed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["a house"], "images": [HOUSE]}]})

    images: list[ImageInput] = Field(default_factory=list)
    texts: Annotated[list[Text], Field(max_length=2048)] = Field(default_factory=list)
    reproducible: Reproducible = False


class EmbedResponse(Wire):
    """Unit vectors of the space that retrieval searches, in order."""

    fingerprint: str
    dimension: int
    images: list[list[float]]
    texts: list[list[float]]
