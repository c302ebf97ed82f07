"""Wire format of galleries and items."""

from typing import Annotated, Literal

from pydantic import Field, RootModel

from app.api.schemas.wire import (
    FINGERPRINT,
    FIRST_ERROR,
    Caption,
    FilterInput,
    GalleryName,
    ImageInput,
    Input,
    ItemId,
    Limited,
    Metadata,
    Problem,
    Wire,
    examples,
)
from app.domain import HOUSE

ITEMS_A_CALL = Limited("max_items_per_call", "Send 1 to {limit} items a call.")


class GalleryFields(Input):
    """The fields of a gallery that PUT changes; an absent one keeps its value."""

    model_config = examples({"description": "Icons of our shop."})

    description: Annotated[str, Field(max_length=2000)] | None = None


class GallerySummary(Wire):
    """A gallery in the list."""

    name: GalleryName
    description: str
    count: int


class GalleryList(Wire):
    """All galleries, ordered by name."""

    galleries: list[GallerySummary]
    total: int


class FacetReport(Wire):
    """A value of a metadata field, and how many items have it, alone or in a list."""

    value: str | int | float | bool | None
    count: int


class FacetList(Wire):
    """The most frequent values of a field; `total` is the number of its different values."""

    model_config = examples(
        {"gallery": "default", "field": "kind", "facets": [{"value": "icon", "count": 12}], "total": 1}
    )

    gallery: str
    field: str
    facets: list[FacetReport]
    total: int


class FacetQuery(Input):
    """`field`: a member of the metadata; objects in it have no value, and the elements of a list count singly."""

    field: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]*$")]
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class IndexReport(Wire):
    """The vector index of a gallery; replicas with the same vectors have the same digest.

    `recall` at 10 was measured when the index was built; null where the search is exact.
    """

    kind: str
    vectors: int
    applied_seq: int
    head_seq: int  # the last write of the change log; greater than applied_seq where the index lags
    fingerprint: str
    digest: str
    recall: float | None


class GalleryReport(GallerySummary):
    """One gallery and its index."""

    model_config = examples(
        {
            "name": "default",
            "description": "Icons of our shop.",
            "count": 1651,
            "index": {
                "kind": "flat",
                "vectors": 1651,
                "applied_seq": 1652,
                "head_seq": 1652,
                "fingerprint": FINGERPRINT,
                "digest": "9f2b",
                "recall": None,
            },
        }
    )

    index: IndexReport


class ItemFields(Input):
    """The fields of one item beside its image."""

    id: ItemId | None = None
    metadata: Metadata = Field(default_factory=dict)
    caption: Caption | None = None


class ItemsForm(Input):
    """The text fields of a form: `items` is JSON, one entry for each part `image`, in order."""

    items: Annotated[list[ItemFields], FIRST_ERROR, ITEMS_A_CALL] = Field(default_factory=list)


class NewItem(ItemFields):
    """One item of a JSON body."""

    model_config = examples({"id": "house", "image": HOUSE, "metadata": {"name": "house"}})

    image: ImageInput


class NewItems(RootModel[Annotated[list[NewItem], FIRST_ERROR, ITEMS_A_CALL]]):
    """The items of a JSON body."""


class ItemPut(Input):
    """One item to create or replace; without an image, the fields of an existing item change."""

    model_config = examples({"image": HOUSE, "metadata": {"name": "house"}})

    image: ImageInput | None = None
    metadata: Metadata | None = None
    caption: Caption | None = None


class ItemPutOptions(Input):
    """The text fields of a form that puts one item."""

    metadata: Metadata | None = None
    caption: Caption | None = None


class ItemPatch(Input):
    """A JSON merge patch (RFC 7396) of the metadata: null removes a member."""

    model_config = examples({"metadata": {"name": "hut", "old": None}})

    metadata: Metadata


class ItemsDelete(Input):
    """The items to delete: some ids, or all that pass a filter."""

    model_config = examples({"ids": ["house"]}, {"filter": {"kind": "icon"}})

    ids: Annotated[list[ItemId], FIRST_ERROR, Field(min_length=1, max_length=10_000)] | None = None
    filter: FilterInput | None = None


class ItemsDeleted(Wire):
    """The number of deleted items, and the ids that did not exist."""

    seq: int
    deleted: int
    missing: list[str]


class WriteQuery(Input):
    """`wait`: respond when the write is searchable here (true), or as soon as it is durable (false).

    Where the index cannot follow at once, a durable write is answered as done all the same; `X-Min-Seq` waits for it.
    """

    wait: bool = True


class ItemOutcome(Wire):
    """The outcome for one item; `problem` where it was rejected."""

    id: str | None
    status: Literal["created", "replaced", "rejected"]
    problem: Problem | None = None


class ItemsWritten(Wire):
    """The write's `seq` in the change log, and an outcome for each item, in order."""

    model_config = examples({"seq": 12, "results": [{"id": "house", "status": "created"}]})

    seq: int
    results: list[ItemOutcome]


class ItemReport(Wire):
    """One stored item."""

    model_config = examples(
        {
            "id": "house",
            "metadata": {"name": "house"},
            "caption": None,
            "sha256": "9f86d081884c",
            "media_type": "image/png",
            "width": 256,
            "height": 256,
            "fingerprint": FINGERPRINT,
            "created_at": 1764360000.0,
            "seq": 12,
            "image_url": "/galleries/default/items/house/image",
        }
    )

    id: str
    metadata: Metadata
    caption: str | None
    sha256: str
    media_type: str
    width: int
    height: int
    fingerprint: str
    created_at: float
    seq: int  # the item's version: its ETag
    image_url: str


class ItemPage(Wire):
    """Items, ordered by id; `next_cursor` is null on the last page, and `total` counts those of all pages."""

    items: list[ItemReport]
    next_cursor: str | None
    total: int


class ItemPageQuery(Input):
    """Query parameters of the item list; `filter` is the JSON of a filter."""

    cursor: ItemId | None = None
    # A URL cannot hold an object, so that the filter is JSON text.
    filter: Annotated[str, Field(max_length=65_536)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class SignedQuery(Input):
    """What an `image_url` carries where keys are on: it opens the image for everyone who has it, until `expires`."""

    expires: Annotated[str, Field(pattern=r"^\d{1,12}$", description="Seconds since 1970.")] | None = None
    signature: Annotated[str, Field(max_length=100)] | None = None


class ImageQuery(SignedQuery):
    """`size`: the longest side of a thumbnail, px; absent for the stored image."""

    size: Annotated[int, Field(ge=16, le=2048)] | None = None


class ExportQuery(Input):
    """`format`: lines of JSON with vectors, or a tar with images, metadata and captions (webdataset)."""

    format: Literal["ndjson", "webdataset"] = "ndjson"


class GalleryDeleteQuery(Input):
    """`confirm` repeats the name of a gallery that is not empty."""

    confirm: str | None = None
