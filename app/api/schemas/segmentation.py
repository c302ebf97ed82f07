"""Wire format of `/segment`."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from app.api.schemas.images import HOUSE, ImageInput
from app.api.schemas.wire import Caption, GalleryName, Label, Reproducible, Timings, Wire

Template = Annotated[str, Field(min_length=2, max_length=256)]


class ClassObject(Wire):
    """A class with other words for it and prompt templates of its own (each with one `{}`)."""

    name: Label
    synonyms: Annotated[list[Label], Field(max_length=64)] = Field(default_factory=list)
    templates: Annotated[list[Template], Field(max_length=64)] = Field(default_factory=list)


Classes = Annotated[list[Label | ClassObject], Field(min_length=1, max_length=255)]


class SegmentOptions(Wire):
    """Everything but the image: the fields of the multipart form. Exactly one of `classes`, `class_set`."""

    classes: Classes | None = None
    class_set: GalleryName | None = None
    background: bool = True
    format: Literal["rle", "label_map", "png"] = "rle"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    caption: Caption | None = None
    reproducible: Reproducible = False


class SegmentRequest(SegmentOptions):
    """An image and the classes to find in it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image": HOUSE, "classes": ["house", "tree"]}]})

    image: ImageInput


class RleMask(Wire):
    """COCO's compressed run-length form: `size` is [height, width]."""

    size: tuple[int, int]
    counts: str


class SegmentedClass(Wire):
    """One class in the request's order; an absent one has area 0 and no box or mask.

    `score` is the mean probability over its mask; `mask` is an RLE object or a base64 1-bit PNG.
    """

    index: int
    name: str
    area: int
    fraction: float
    score: float
    bbox: tuple[int, int, int, int] | None
    mask: RleMask | str | None


class SegmentResponse(Wire):
    """Disjoint masks at the input's own size."""

    width: int
    height: int
    fingerprint: str
    classes: list[SegmentedClass]
    label_map: str | None = None
    timings_ms: Timings
