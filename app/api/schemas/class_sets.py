"""Wire format of class sets."""

from typing import Annotated

from pydantic import ConfigDict, Field

from app.api.schemas.segmentation import Classes
from app.api.schemas.wire import GalleryName, Wire


class ClassSetFields(Wire):
    """The classes of a set, as `/segment` takes them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"classes": ["sky", {"name": "house", "synonyms": ["hut"]}]}]}
    )

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
