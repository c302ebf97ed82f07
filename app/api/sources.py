"""Wire image inputs to what tasks take."""

from app.api.schemas.images import Base64Input, ImageInput, StrokesInput, SvgInput
from app.imaging.sources import Base64Image, StrokesImage, SvgImage
from app.tasks.inputs import ItemImage, Source


def source_of(image: ImageInput) -> Source:
    """The source that an `ImageInput` names."""
    if isinstance(image, Base64Input):
        return Base64Image(text=image.base64)
    if isinstance(image, StrokesInput):
        return StrokesImage(strokes=image.strokes, width=image.width, height=image.height)
    if isinstance(image, SvgInput):
        return SvgImage(text=image.svg)
    return ItemImage(gallery=image.item.gallery, id=image.item.id)
