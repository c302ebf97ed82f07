"""The Python client of Vermouth: search by sketch, masks by words, classes from a few examples."""

from vermouth_client.bulk import ImportReport, ImportStopped, NewItem, Rejected, folder_items
from vermouth_client.client import AsyncClient, Client
from vermouth_client.errors import NoAnswer, ServiceError, VermouthError
from vermouth_client.images import ImageLike, Item, Strokes, Svg
from vermouth_client.live import Live

__all__ = [
    "AsyncClient",
    "Client",
    "ImageLike",
    "ImportReport",
    "ImportStopped",
    "Item",
    "Live",
    "NewItem",
    "NoAnswer",
    "Rejected",
    "ServiceError",
    "Strokes",
    "Svg",
    "VermouthError",
    "folder_items",
]
