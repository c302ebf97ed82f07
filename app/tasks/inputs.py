"""Input images of all tasks: gallery item references are resolved, then decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import ServiceError
from app.imaging.decoding import ImageDecoder, result_of
from app.imaging.raster import DecodedImage, TiledImage
from app.imaging.sources import EncodedImage, ImageSource, PixelBudget
from app.stores.records.items import Items
from app.stores.sql.database import Database
from models.types import TaskProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemImage:
    """The stored image of a gallery item."""

    gallery: str
    id: str


Source = ImageSource | ItemImage


class ImageInputs:
    """Reads input images for all tasks at the resolution of their profile."""

    def __init__(self, decoder: ImageDecoder, database: Database, items: Items) -> None:
        self._decoder = decoder
        self._database = database
        self._items = items

    async def prepare(
        self, sources: Sequence[Source], budget: PixelBudget, profile: TaskProfile
    ) -> list[DecodedImage | ServiceError]:
        """Return model-ready images in order; a bad image is an error in its own place.

        Raises:
            ImageTooLarge, TooMuchWork, QueueFull: the request as a whole is refused.
        """
        budget.check_count(len(sources))  # before item images are read from the store
        files: list[ImageSource | ServiceError] = []
        for source in sources:
            try:
                files.append(await self._file(source))
            except ServiceError as err:
                files.append(err)
        readable = [file for file in files if not isinstance(file, ServiceError)]
        decoded = iter(await self._decoder.decode_many(readable, budget, profile.resolution))  # one per readable file
        return [file if isinstance(file, ServiceError) else next(decoded) for file in files]

    async def prepare_all(
        self, sources: Sequence[Source], budget: PixelBudget, profile: TaskProfile
    ) -> list[DecodedImage]:
        """As `prepare`, but the first bad image is raised."""
        return [result_of(outcome) for outcome in await self.prepare(sources, budget, profile)]

    async def tiles(self, source: Source, budget: PixelBudget, profile: TaskProfile) -> TiledImage:
        """Return the squares that segmentation encodes. Raises as `prepare_all`."""
        budget.check_count(1)
        return await self._decoder.tiles(await self._file(source), budget, profile.resolution)

    async def _file(self, source: Source) -> ImageSource:
        if not isinstance(source, ItemImage):
            return source
        _, data = await self._database.run(self._items.image, source.gallery, source.id)
        return EncodedImage(data=data)  # decoded again: the store holds files alone
