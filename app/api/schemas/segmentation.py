"""Wire format of `/segment` and of class sets."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from app.api.schemas.wire import (
    FINGERPRINT,
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
    format: Literal["rle", "label_map", "polygons", "png", "coco", "overlay"] = "rle"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_area: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0  # px; smaller islands become background
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


Mask = RleMask | str | list[list[int]]


class SegmentedClass(Wire):
    """One class, in the request's order; a class that was not found has area 0 and no box or mask.

    `score` is the mean probability over its mask, before islands under `min_area` are dropped. `mask` is an RLE object,
    a base64 1-bit PNG, or polygons: the outer ring `[x, y, x, y, …]` of each island, along the edges of its pixels.
    A ring rasterises to exactly the pixels of its island and of the holes in it.
    """

    index: int
    name: str
    area: int
    fraction: float  # of the image's area
    score: float
    bbox: tuple[int, int, int, int] | None  # x, y, width, height in px, as in COCO
    mask: Mask | None


class SegmentResponse(Wire):
    """Disjoint masks at the input's size."""

    model_config = examples(
        {
            "width": 4,
            "height": 2,
            "fingerprint": FINGERPRINT,
            "classes": [
                {
                    "index": 1,
                    "name": "house",
                    "area": 4,
                    "fraction": 0.5,
                    "score": 0.9,
                    "bbox": [0, 0, 2, 2],
                    "mask": {"size": [2, 4], "counts": "044"},
                },
                {"index": 2, "name": "tree", "area": 0, "fraction": 0, "score": 0, "bbox": None, "mask": None},
            ],
            "timings_ms": {"decode": 2.0, "inference": 20.1, "head": 3.3, "total": 26.0},
        }
    )

    width: int
    height: int
    fingerprint: str
    classes: list[SegmentedClass]
    label_map: str | None = None  # a base64 palette PNG
    timings_ms: Timings


class CocoImage(Wire):
    """The image of a COCO document."""

    id: int
    width: int
    height: int
    file_name: str


class CocoAnnotation(Wire):
    """The mask of one class that was found, as in COCO's results."""

    id: int
    image_id: int
    category_id: int  # the class's index
    segmentation: RleMask
    area: int
    bbox: tuple[int, int, int, int]
    iscrowd: int
    score: float


class CocoCategory(Wire):
    """A class, found or not."""

    id: int
    name: str


class CocoDocument(Wire):
    """A COCO document that pycocotools loads; `info.version` is the bundle's fingerprint."""

    info: dict[str, str]
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


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
    total: int
