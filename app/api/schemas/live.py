"""Wire format of `WS /retrieve/live`."""

from typing import Annotated, Literal

from pydantic import Field

from app.api.schemas.images import StrokesInput
from app.api.schemas.retrieval import RetrieveResponse, Text
from app.api.schemas.wire import FilterInput, GalleryName, Wire


class LiveAuth(Wire):
    """The first message of a client that could send no header."""

    type: Literal["auth"]
    key: Annotated[str, Field(min_length=1, max_length=1000)]


class LiveQuery(StrokesInput):
    """The drawing as it is now; a message with a greater `seq` takes the place of one that still waits."""

    type: Literal["query"]
    seq: Annotated[int, Field(ge=0, le=2**53 - 1)]
    text: Text | None = None
    gallery: GalleryName = "default"
    k: Annotated[int, Field(ge=1)] = 10
    filter: FilterInput | None = None


class LiveResults(RetrieveResponse):
    """What was found for the query of this `seq`."""

    type: Literal["results"] = "results"
    seq: int
