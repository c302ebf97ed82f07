"""Imports of any number of items: what to send next, and what became of it; the clients send."""

import hashlib
import os
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from vermouth_client.calls import given, json_of
from vermouth_client.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    ImageTooLarge,
    Invalid,
    Malformed,
    ResponseLost,
    TooMuchWork,
    VermouthError,
)
from vermouth_client.images import ImageLike, file_or_json, wire
from vermouth_client.models import ItemsWritten

MAX_BATCH_BYTES = 16 << 20  # unless one item has more; the service takes 32 MiB a request
_OF_ONE_ITEM = (BodyTooLarge, DeadlineExceeded, ImageTooLarge, Invalid, Malformed, TooMuchWork)
"""Refusals of a whole request that one item may cause; halves find it."""
SUFFIXES = frozenset(".png .apng .jpg .jpeg .jpe .jfif .mpo .webp .avif .gif .bmp .dib .tif .tiff .svg".split())
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")  # as the service's
_ODD = re.compile(r"[^A-Za-z0-9._:-]+")
_NO_BYTE = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")  # half pairs that JSON may hold; the others are a name's bytes


@dataclass(frozen=True, slots=True)
class NewItem:
    """An image for a gallery; without an id, one is made up."""

    image: ImageLike
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """An item as it is sent.

    Attributes:
        fields: all but its image.
        image: a file, or the JSON of a drawing or of another item's image.
        size: bytes of both.
    """

    fields: dict[str, Any]
    image: bytes | dict[str, Any]
    size: int


Batch = list[Part]


@dataclass(frozen=True, slots=True)
class Rejected:
    """An item that was not added, and why: `code` is the service's, or `unreadable` for what could not be sent."""

    id: str
    code: str
    detail: str


@dataclass(slots=True)
class ImportReport:
    """What an import did: every item of its source is in one of the four, or was not added when it stopped."""

    created: int = 0
    replaced: int = 0
    skipped: int = 0
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def added(self) -> int:
        """Items that the gallery has now."""
        return self.created + self.replaced


class ImportStopped(VermouthError):
    """A request or the source failed for good; `report` says what was done, and the cause why."""

    def __init__(self, report: ImportReport) -> None:
        super().__init__(f"The import stopped after {report.added} items.")
        self.report = report


def folder_items(folder: str | os.PathLike[str]) -> Iterator[NewItem]:
    """The images of a folder and its subfolders, with the ids and metadata that `vermouth gallery import` gives them.

    Files that are hidden, or have no suffix of an image, are left out.
    """
    for path in sorted(Path(folder).rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in parts) and path.is_file():
            name = "/".join(parts)
            yield NewItem(path, id=item_id(name), metadata={"path": name_bytes(name).decode("utf-8", "replace")})


def item_id(name: str) -> str:
    """An item id for a path: itself where it is one, else its valid characters and a digest."""
    if ID.fullmatch(name):
        return name
    plain = _ODD.sub("_", name).lstrip("._:-")[:96]  # leaves room for the digest
    return f"{plain or 'item'}-{hashlib.sha256(name_bytes(name)).hexdigest()[:12]}"


def name_bytes(name: str) -> bytes:
    """A file's name as the system has it; half pairs of surrogates are replaced."""
    return _NO_BYTE.sub("\N{REPLACEMENT CHARACTER}", name).encode("utf-8", "surrogateescape")


def part_of(item: NewItem) -> Part:
    """Reads an item. Raises as `wire` and `json_of`."""
    fields = given({"id": item.id, "metadata": dict(item.metadata), "caption": item.caption})
    image = file_or_json(item.image)
    size = len(json_of(fields)) + len(image if isinstance(image, bytes) else json_of(image))
    return Part(fields, image, size)


def body_of(parts: Sequence[Part]) -> tuple[bytes, str]:
    """The body that adds items, and its media type: a form where every image is a file, else JSON."""
    files = [part.image for part in parts if isinstance(part.image, bytes)]
    if len(files) < len(parts) or not parts:
        images = [wire(part.image) if isinstance(part.image, bytes) else part.image for part in parts]
        items = [{**part.fields, "image": image} for part, image in zip(parts, images, strict=True)]
        return json_of(items), "application/json"
    fields = json_of([part.fields for part in parts])
    form = httpx.Request("POST", "", data={"items": fields}, files=[("image", ("image", file)) for file in files])
    return form.read(), form.headers["Content-Type"]


class Bulk:
    """The state of one import: holds a batch of its source at a time, and those that come back.

    Args:
        skip: ids that are not sent.
        size: items a batch.
    """

    def __init__(self, items: Iterable[NewItem], *, skip: Collection[str], size: int) -> None:
        self.report = ImportReport()
        self._items = iter(items)
        self._skip = skip
        self._size = size
        self._again: list[Batch] = []
        self._next: Part | None = None  # read, and too large for the batch before
        self._failure: BaseException | None = None
        self._is_stopped = False  # by a request; after a failure of the source, what was read is sent

    def next(self) -> Batch:
        """The next batch to send; empty at the end of the source, and after a failure, which may be the source's."""
        if self._is_stopped:
            return []
        if self._again:
            return self._again.pop()
        if self._failure is not None:
            return []
        batch: Batch = []
        n_bytes = 0
        try:
            for part in self._read():
                if batch and n_bytes + part.size > MAX_BATCH_BYTES:
                    self._next = part
                    break
                batch.append(part)
                n_bytes += part.size
                if len(batch) == self._size:
                    break
        except Exception as err:  # noqa: BLE001 - the source's own; what came before it is sent
            self._failure = err
        return batch

    def settle(self, batch: Batch, outcome: ItemsWritten | BaseException) -> None:
        """Take the outcome of a batch into the report; what cannot be mended ends the import."""
        if isinstance(outcome, ItemsWritten):
            for one in outcome.results:
                if one.problem is not None:
                    self.report.rejected.append(Rejected(one.id or "", one.problem.code, one.problem.detail))
                elif one.status == "created":
                    self.report.created += 1
                else:
                    self.report.replaced += 1
        elif isinstance(outcome, ResponseLost):
            self._again.append(batch)  # every item has its id: sent again, it says what became of each
        elif isinstance(outcome, _OF_ONE_ITEM) and len(batch) > 1:
            middle = len(batch) // 2
            self._again += [batch[:middle], batch[middle:]]
        elif isinstance(outcome, _OF_ONE_ITEM) and not isinstance(outcome, DeadlineExceeded):
            self.report.rejected.append(Rejected(batch[0].fields["id"], outcome.code, outcome.detail))
        else:
            self._failure = self._failure or outcome
            self._is_stopped = True

    def result(self) -> ImportReport:
        """The report, once every batch is settled. Raises ImportStopped after a failure."""
        if self._failure is not None:
            raise ImportStopped(self.report) from self._failure
        return self.report

    def _read(self) -> Iterator[Part]:
        """The items to send, each with an id; counts the others."""
        if self._next is not None:
            part, self._next = self._next, None
            yield part
        for one in self._items:
            name = one.id or uuid.uuid4().hex
            if name in self._skip:
                self.report.skipped += 1
                continue
            try:
                yield part_of(replace(one, id=name))
            except (OSError, TypeError, ValueError) as err:
                self.report.rejected.append(Rejected(name, "unreadable", str(err)))
