"""Input images to encoder views, and back to bytes worth storing."""

import io
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.domain import Picture
from app.errors import ServiceError, UndecodableImage
from app.imaging.cache import M
from app.imaging.sources import EncodedImage, ImageDecoder, ImageSource, PixelBudget, StrokesImage
from app.stores.records.items import Items
from app.stores.sql.database import Database
from models.errors import InputError
from models.types import TaskProfile

_MEDIA_TYPES = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8", "image/jpeg"),
    (b"RIFF", "image/webp"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemImage:
    """The stored picture of a gallery item."""

    gallery: str
    id: str


Source = ImageSource | ItemImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One picture in the encoder's form.

    Attributes:
        square: [size, size, 3] uint8 RGB, canonical.
        data: bytes to store: the file as it came, or a PNG of what was drawn.
        media_type: of `data`.
        width: of the oriented input, px.
        height: of the oriented input, px.
    """

    square: NDArray[np.uint8]
    data: bytes
    media_type: str
    width: int
    height: int

    @property
    def size_bytes(self) -> int:
        """See `picture_cache.Kept`."""
        return self.square.nbytes


class Pictures:
    """Reads input images for all tasks.

    Args:
        decoder: decodes untrusted bytes in its own pool.
        database: runs blocking store work.
        items: where item references lead.
    """

    def __init__(self, decoder: ImageDecoder, database: Database, items: Items) -> None:
        self._decoder = decoder
        self._database = database
        self._items = items

    async def prepare(
        self, sources: Sequence[Source], budget: PixelBudget, profile: TaskProfile
    ) -> list[Prepared | ServiceError]:
        """Canonical squares in order; a bad picture is an error in its own place.

        Raises:
            ImageTooLarge, TooMuchWork, QueueFull: the request as a whole is refused.
        """
        size = profile.resolution
        return await self._make(sources, budget, partial(_prepare, size), size=size, what=("canonical", size))

    async def prepare_all(self, sources: Sequence[Source], budget: PixelBudget, profile: TaskProfile) -> list[Prepared]:
        """As `prepare`, but one bad picture refuses the request.

        Raises:
            The first picture's error, and those of `prepare`.
        """
        found: list[Prepared] = []
        for outcome in await self.prepare(sources, budget, profile):
            if isinstance(outcome, ServiceError):
                raise outcome
            found.append(outcome)
        return found

    async def make(
        self,
        source: Source,
        budget: PixelBudget,
        make: Callable[[ImageSource, Picture], M],
        *,
        size: int,
        what: Hashable,
    ) -> M:
        """What `make` makes of one picture, in the decoder's pool; drawings are `size` px wide.

        Args:
            what: as which it is kept, see `PictureCache.made`.

        Raises:
            The picture's error, and those of `prepare`.
        """
        (outcome,) = await self._make([source], budget, make, size=size, what=what)
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    async def _make(
        self,
        sources: Sequence[Source],
        budget: PixelBudget,
        make: Callable[[ImageSource, Picture], M],
        *,
        size: int,
        what: Hashable,
    ) -> list[M | ServiceError]:
        budget.check_count(len(sources))
        files = [await self._file(source, size) for source in sources]
        readable = [file for file in files if not isinstance(file, ServiceError)]
        results = iter(await self._decoder.make_many(readable, budget, make, what))
        return [file if isinstance(file, ServiceError) else next(results) for file in files]

    async def _file(self, source: Source, size: int) -> ImageSource | ServiceError:
        """The source as something the decoder takes, with its bytes at hand where it has any."""
        try:
            if isinstance(source, ItemImage):
                _, data = await self._database.run(self._items.image, source.gallery, source.id)
                return EncodedImage(data=data)
            if isinstance(source, StrokesImage):
                return StrokesImage(strokes=source.strokes, width=source.width, height=source.height, size=size)
        except ServiceError as err:
            return err
        return source


def media_type_of(data: bytes) -> str:
    """The media type of a file that was decoded before."""
    return next((kind for magic, kind in _MEDIA_TYPES if data.startswith(magic)), "application/octet-stream")


def _prepare(size: int, source: ImageSource, picture: Picture) -> Prepared:
    try:
        # Strokes are drawn in the canonical form already.
        sketch = picture.pixels if isinstance(source, StrokesImage) else picture.sketch(size)
        square = picture.square(size) if sketch is None else sketch
    except InputError as err:
        raise UndecodableImage("The image holds nothing to look at.") from err
    data = source.data if isinstance(source, EncodedImage) else _png(picture.pixels)
    return Prepared(
        square=square, data=data, media_type=media_type_of(data), width=picture.width, height=picture.height
    )


def _png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
