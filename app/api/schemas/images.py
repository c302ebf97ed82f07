"""Image inputs in JSON: an object with exactly one of base64, strokes, svg and item."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag
from pydantic.config import JsonDict

from app.api.schemas.wire import GalleryName, ItemId, Wire
from app.imaging.sources import Base64Image, StrokesImage, SvgImage
from app.tasks.inputs import ItemImage, Source


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
