"""Answers as frozen objects, named as in the OpenAPI document; what a newer service adds is in `model_extra`."""

import base64
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from vermouth_client.masks import contact_sheet, decode_rle, overlay

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_LAST_DRAWN = "\u00ff"  # Pillow's own font has Latin letters alone
Metadata = dict[str, Any]
Fetch = Callable[..., bytes]
"""`Client.item_image`."""


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Readiness(Answer):
    status: str
    features: tuple[str, ...] = ()
    training_free: bool = False


class Version(Answer):
    name: str
    version: str
    libraries: dict[str, str]


class TaskView(Answer):
    resolution: int
    timestep: int
    templates: tuple[str, ...]
    features: dict[str, float]


class BundleView(Answer):
    name: str
    fingerprint: str
    features: tuple[str, ...]
    training_free: bool
    dimension: int
    visual_dimension: int
    device: str
    dtype: str
    captioner: str
    tasks: dict[str, TaskView]
    manifest: dict[str, Any]


class JobReport(Answer):
    id: str
    kind: str
    state: str
    done: int
    total: int
    report: dict[str, Any]
    error: str | None
    created_at: float
    updated_at: float


class GallerySummary(Answer):
    name: str
    description: str
    count: int


class GalleryList(Answer):
    galleries: list[GallerySummary]
    total: int


class IndexReport(Answer):
    kind: str
    vectors: int
    applied_seq: int
    head_seq: int
    fingerprint: str
    digest: str
    recall: float | None


class GalleryReport(GallerySummary):
    index: IndexReport


class FacetReport(Answer):
    value: str | int | float | bool | None
    count: int


class FacetList(Answer):
    gallery: str
    field: str
    facets: list[FacetReport]
    total: int


class Rejection(Answer):
    """Why an item was rejected."""

    code: str
    detail: str


class ItemOutcome(Answer):
    id: str | None
    status: Literal["created", "replaced", "rejected"]
    problem: Rejection | None = None


class ItemsWritten(Answer):
    seq: int
    results: list[ItemOutcome]


class ItemsDeleted(Answer):
    seq: int
    deleted: int
    missing: list[str]


class ItemReport(Answer):
    id: str
    metadata: Metadata
    caption: str | None
    sha256: str
    media_type: str
    width: int
    height: int
    fingerprint: str
    created_at: float
    seq: int
    image_url: str


class ItemPage(Answer):
    items: list[ItemReport]
    next_cursor: str | None
    total: int


class RetrieveResult(Answer):
    id: str
    score: float
    metadata: Metadata
    image_url: str

    @property
    def title(self) -> str:
        """The item's name, else the file name in its path, else its id."""
        name, path = self.metadata.get("name"), self.metadata.get("path")
        stem = PurePosixPath(path).stem if isinstance(path, str) else ""
        return name if isinstance(name, str) and name.strip() else stem or self.id


class RetrieveResponse(Answer):
    gallery: str
    index_seq: int
    fingerprint: str
    results: list[RetrieveResult]
    total: int
    timings_ms: dict[str, float]
    _fetch: Fetch | None = PrivateAttr(default=None)

    def sheet(self, *, size: int = 160) -> "Image.Image":
        """The results' thumbnails with scores and titles; reads them from the service, and blocks. Needs Pillow."""
        if self._fetch is None:
            raise ValueError("These results were not read by a client: read their images with `item_image`.")
        fetch = self._fetch
        captions = [f"{one.score:.2f} {one.title if max(one.title) <= _LAST_DRAWN else one.id}" for one in self.results]
        return contact_sheet((fetch(self.gallery, one.id, size=size) for one in self.results), captions, size=size)

    def show(self) -> None:
        """Open the contact sheet in the system's viewer, or below a notebook's cell."""
        self.sheet().show()


class EmbedResponse(Answer):
    fingerprint: str
    dimension: int
    images: list[list[float]]
    texts: list[list[float]]


class RleMask(Answer):
    size: tuple[int, int]
    counts: str


class SegmentedClass(Answer):
    """One class; `encoded` is its mask as the service sent it, `mask` the array."""

    index: int
    name: str
    area: int
    fraction: float
    score: float
    bbox: tuple[int, int, int, int] | None
    encoded: RleMask | list[list[int]] | str | None = Field(alias="mask")
    _size: tuple[int, int] = PrivateAttr(default=(0, 0))

    @property
    def mask(self) -> "np.ndarray[Any, Any]":
        """`[H, W]` bool at the image's own size, all False where the class was not found. Needs NumPy."""
        if isinstance(self.encoded, RleMask):
            return decode_rle(self.encoded.size, self.encoded.counts)
        if self.area:
            raise ValueError("Masks are arrays where the format is rle.")
        import numpy as np

        return np.zeros(self._size, dtype=bool)


class SegmentResponse(Answer):
    width: int
    height: int
    fingerprint: str
    classes: list[SegmentedClass]
    label_map: str | None = None
    timings_ms: dict[str, float]
    _image: str = PrivateAttr(default="")  # base64

    def model_post_init(self, _: Any) -> None:
        for one in self.classes:
            one._size = (self.height, self.width)

    @property
    def labels(self) -> "np.ndarray[Any, Any]":
        """`[H, W]` uint8: the index of each pixel's class, 0 where it has none. Needs NumPy."""
        import numpy as np

        labels = np.zeros((self.height, self.width), dtype=np.uint8)
        for one in self.classes:
            labels[one.mask] = one.index
        return labels

    def overlay(self) -> "Image.Image":
        """The image under coloured masks; a drawing's and an item's masks are on white. Needs NumPy and Pillow."""
        return overlay(base64.b64decode(self._image), self.labels)

    def show(self) -> None:
        """Open the overlay in the system's viewer, or below a notebook's cell."""
        self.overlay().show()


class StoredClass(Answer):
    name: str
    synonyms: list[str]
    templates: list[str]


class ClassSetReport(Answer):
    name: str
    version: int
    classes: list[StoredClass]
    created_at: float
    updated_at: float


class ClassSetSummary(Answer):
    name: str
    version: int
    count: int


class ClassSetList(Answer):
    class_sets: list[ClassSetSummary]
    total: int


class SupportReport(Answer):
    id: str
    sha256: str
    image_url: str


class WayCount(Answer):
    label: str
    shots: int


class WayReport(WayCount):
    support: list[SupportReport]


class LabelScore(Answer):
    label: str
    probability: float


class PredictionReport(Answer):
    """The prediction for one query; `label` is None where the service abstained."""

    label: str | None
    probability: float
    abstained: bool
    scores: list[LabelScore]


class LeaveOneOutReport(Answer):
    accuracy: float
    ci95: tuple[float, float]
    confusion: dict[str, dict[str, int]]


class EpisodeFields(Answer):
    id: str
    name: str | None
    version: int
    method: str
    fingerprint: str
    expires_at: float | None


class EpisodeReport(EpisodeFields):
    ways: list[WayReport]
    leave_one_out: LeaveOneOutReport | None = None


class EpisodeEntry(EpisodeFields):
    ways: list[WayCount]


class EpisodeCreated(EpisodeReport):
    predictions: list[PredictionReport] | None = None
    timings_ms: dict[str, float]


class EpisodePage(Answer):
    episodes: list[EpisodeEntry]
    next_cursor: str | None
    total: int


class ClassifyResponse(Answer):
    episode: str
    version: int
    predictions: list[PredictionReport]
    timings_ms: dict[str, float]
