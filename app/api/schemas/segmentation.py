"""Wire format of `/segment` and of class sets."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from app.api.schemas.wire import (
    FIRST_ERROR,
    FORM,
    Caption,
    GalleryName,
    ImageInput,
    Input,
    Label,
    Reproducible,
    Timings,
    Wire,
    examples,
)
from app.domain import HOUSE

Template = Annotated[str, Field(min_length=2, max_length=256)]


class ClassObject(Input):
    """A class with synonyms and its own prompt templates, each with one `{}`."""

    name: Label
    synonyms: Annotated[list[Label], FIRST_ERROR, Field(max_length=64)] = Field(default_factory=list)
    templates: Annotated[list[Template], FIRST_ERROR, Field(max_length=64)] = Field(default_factory=list)


def _form(value: object) -> str:
    return FORM + ("object" if isinstance(value, dict | ClassObject) else "name")


ClassInput = Annotated[
    Annotated[Label, Tag(f"{FORM}name")] | Annotated[ClassObject, Tag(f"{FORM}object")], Discriminator(_form)
]
# A label map has 8 bits, and 0 is the background.
Classes = Annotated[list[ClassInput], FIRST_ERROR, Field(min_length=1, max_length=255)]


class SegmentOptions(Input):
    """Everything but the image: the text fields of the multipart form. Exactly one of `classes`, `class_set`."""

    classes: Classes | None = None
    class_set: GalleryName | None = None
    background: bool = True  # False: every pixel gets one of the classes
    format: Literal["rle", "label_map", "png"] = "rle"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    caption: Caption | None = None
    reproducible: Reproducible = False


class SegmentRequest(SegmentOptions):
    """An image and the classes to find in it."""

    model_config = examples({"image": HOUSE, "classes": ["house", "tree"]})

    image: ImageInput


class RleMask(Wire):
    """A mask in COCO's compressed run-length encoding; `size` is [height, width]."""

    size: tuple[int, int]
    counts: str


class SegmentedClass(Wire):
    """One class, in the request's order; a class that was not found has area 0 and no box or mask.

    `score` is the mean probability over its mask; `mask` is an RLE object or a base64 1-bit PNG.
    """

    index: int
    name: str
    area: int
    fraction: float  # of the image's area
    score: float
    bbox: tuple[int, int, int, int] | None  # x, y, width, height in px, as in COCO
    mask: RleMask | str | None


class SegmentResponse(Wire):
    """Disjoint masks at the input's size."""

    width: int
    height: int
    fingerprint: str
    classes: list[SegmentedClass]
    label_map: str | None = None  # a base64 palette PNG
    timings_ms: Timings


class ClassSetFields(Input):
    """The classes of a set, in the form that `/segment` takes."""

    model_config = examples({"classes": ["sky", {"name": "house", "synonyms": ["hut"]}]})

    classes: Classes


class StoredClass(Wire):
    """One class of a stored set."""

    name: str
    synonyms: list[str]
    templates: list[str]


class ClassSetReport(Wire):
    """A stored class set; times in seconds since 1970."""

    name: GalleryName
    version: int
    classes: list[StoredClass]
    created_at: float
    updated_at: float


class ClassSetSummary(Wire):
    """A class set in the list."""

    name: GalleryName
    version: int
    count: Annotated[int, Field(description="How many classes it has.")]


class ClassSetList(Wire):
    """All class sets, by name."""

    class_sets: list[ClassSetSummary]
