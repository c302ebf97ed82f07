"""The base of all wire models, image inputs, and the types that several of them share."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag
from pydantic.config import JsonDict

from app.imaging.sources import Base64Image, StrokesImage, SvgImage
from app.tasks.inputs import ItemImage, Source

GALLERY_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
ITEM_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
EPISODE_PATTERN = r"^ep_[0-9a-f]{24}$"
# Ids that the server generates.
SUPPORT_PATTERN = r"^s_[0-9a-f]{16}$"
JOB_PATTERN = r"^job_[0-9a-f]{24}$"


class Wire(BaseModel):
    """Base of requests and responses: no unknown fields, no NaN or infinity. Responses are read from records too."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, from_attributes=True)


def examples(*bodies: JsonDict) -> ConfigDict:
    """The `model_config` of a request whose description has examples."""
    return ConfigDict(json_schema_extra={"examples": [*bodies]})


# Labels and names go into logs and terminals.
def _printable(text: str) -> str:
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text):
        raise ValueError("holds control characters")
    return text


GalleryName = Annotated[str, Field(pattern=GALLERY_PATTERN)]
ItemId = Annotated[str, Field(pattern=ITEM_PATTERN)]
Label = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
Caption = Annotated[str, Field(max_length=1000)]
Reproducible = Annotated[
    bool, Field(description="Compute in a pass of fixed size, so that equal inputs give equal bits under any load.")
]
Timings = dict[str, float]
Metadata = dict[str, JsonValue]
FilterInput = Annotated[
    dict[str, JsonValue],
    Field(
        description="`{field: value}` or `{field: {op: value}}` with eq ne in lt lte gt gte any all exists, joined by"
        " `and`, `or`, `not`. A field of such a name is written `{field, op, value}`.",
        examples=[{"kind": "icon", "year": {"gte": 2020}}],
    ),
]


class Base64Input(Wire):
    """A file as base64 text or a base64 data URI."""

    base64: Annotated[str, Field(min_length=1)]

    @property
    def source(self) -> Source:
        """The image source that the input describes; the other forms have it too."""
        return Base64Image(text=self.base64)


class StrokesInput(Wire):
    """A drawing: strokes of `[[x…], [y…]]` on a canvas; a third list, of times, is allowed and ignored."""

    strokes: Annotated[list[Annotated[list[list[float]], Field(min_length=2, max_length=3)]], Field(min_length=1)]
    width: Annotated[float, Field(gt=0)]  # of the canvas, in the strokes' units
    height: Annotated[float, Field(gt=0)]

    @property
    def source(self) -> Source:
        return StrokesImage(strokes=self.strokes, width=self.width, height=self.height)


class SvgInput(Wire):
    """An SVG document of paths and basic shapes."""

    svg: Annotated[str, Field(min_length=1)]

    @property
    def source(self) -> Source:
        return SvgImage(text=self.svg)


class ItemName(Wire):
    """The gallery and the id of an item."""

    gallery: GalleryName
    id: ItemId


class ItemInput(Wire):
    """The stored image of a gallery item."""

    item: ItemName

    @property
    def source(self) -> Source:
        return ItemImage(gallery=self.item.gallery, id=self.item.id)


# The discriminator names the form in errors; a plain union would report the errors of all four.
def _form(value: object) -> str | None:
    if isinstance(value, dict):
        return next((form for form in ("base64", "strokes", "svg", "item") if form in value), None)
    return None


ImageInput = Annotated[
    Annotated[Base64Input, Tag("base64")]
    | Annotated[StrokesInput, Tag("strokes")]
    | Annotated[SvgInput, Tag("svg")]
    | Annotated[ItemInput, Tag("item")],
    Discriminator(
        _form,
        custom_error_type="image_input",
        custom_error_message="an image is an object with exactly one of base64, strokes, svg, item",
    ),
]

HOUSE: JsonDict = {
    "strokes": [
        [[40, 40, 210, 210, 40], [120, 230, 230, 120, 120]],
        [[25, 125, 225], [120, 30, 120]],
        [[105, 105, 145, 145], [230, 170, 170, 230]],
    ],
    "width": 256,
    "height": 256,
}
"""A house drawn as strokes, for examples."""

LINE: JsonDict = {"strokes": [[[10, 240], [20, 230]]], "width": 256, "height": 256}
"""A slanted line drawn as one stroke, for examples."""
