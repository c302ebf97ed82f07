"""Images of folders and archives with their sidecars: files of the same name that hold metadata, caption or id."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from app.cli.importing.files import (
    SIDECARS,
    Importable,
    Skip,
    UnreadableFile,
    id_fault,
    is_image,
    is_system,
    printable,
    split_suffix,
    too_large,
)
from vermouth_client.bulk import item_id

MAX_SIDECAR_BYTES = 1 << 20  # metadata of an item is at most 16 KiB by default


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Entry:
    """One file of a folder or archive.

    Attributes:
        name: relative path, with `/`.
        read: returns at most so many bytes, or all for -1. Raises UnreadableFile.
        is_image: by its suffix, or by its first bytes.
        fault: why its bytes cannot be read; it is not tried then.
        other: why it is no file to import at all.
    """

    name: str
    size: int
    read: Callable[[int], bytes]
    is_image: bool
    fault: str | None = None
    other: str | None = None

    @property
    def data(self) -> bytes:
        """All bytes. Raises UnreadableFile."""
        if fault := self.fault or too_large(self.size):
            raise UnreadableFile(fault)
        data = self.read(-1)
        if fault := too_large(len(data)):  # a link: its own size is zero
            raise UnreadableFile(fault)
        return data


def make_entry(name: str, size: int, read: Callable[[int], bytes], fault: str | None = None) -> Entry:
    """Returns the entry of a file; one without a suffix is read to find out its kind."""
    found = not is_system(name) and is_image(name, read if fault is None else lambda _: b"")
    return Entry(name=name, size=size, read=read, is_image=found, fault=fault)


def import_entries(entries: Sequence[Entry], prefix: str, *, by_key: bool = False) -> Iterator[Importable]:
    """Yields one importable for each entry, in order.

    Args:
        by_key: the entries are samples of a webdataset: ids have no suffix, and sidecars are found by key as well.
    """
    sidecars = _Sidecars(entries, by_key=by_key)
    used: set[str] = set()
    for entry in entries:
        name = printable(entry.name)
        if entry.other is not None:
            yield Importable(id="", name=name, skip=Skip.OTHER, fault=entry.other)
        elif is_system(entry.name):
            yield Importable(id="", name=name, skip=Skip.SYSTEM)
        elif entry in sidecars.used:
            yield Importable(id="", name=name, skip=Skip.SIDECAR)
        elif not entry.is_image:
            yield Importable(id="", name=name, skip=Skip.OTHER, fault=_why_other(entry.name))
        else:
            chosen = item_id(prefix + (split_suffix(entry.name)[0] if by_key else entry.name))
            if chosen in used:  # such as 1.jpg and 1.png
                chosen = item_id(prefix + entry.name)
            used.add(chosen)
            yield _image(entry, chosen, sidecars.of(entry))


def webdataset_key(name: str) -> str:
    """Returns the key of a sample's file: its path up to the first dot of the file's name."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


@dataclass(slots=True)
class _Sample:
    """Images and sidecars of one key."""

    images: int = 0
    sidecars: Counter[str] = field(default_factory=Counter)
    last: dict[str, Entry] = field(default_factory=dict)  # by suffix


class _Sidecars:
    """Which sidecars belong to which image.

    `a.b.jpg` takes `a.b.json`, else `a.b.jpg.json`; in a webdataset also `a.json`, and the only `.json` of its key if
    it is the key's only image.
    """

    def __init__(self, entries: Sequence[Entry], *, by_key: bool) -> None:
        self._by_name: dict[str, Entry] = {}
        self._samples: defaultdict[str, _Sample] | None = defaultdict(_Sample) if by_key else None
        for entry in entries:
            if not is_system(entry.name) and entry.other is None:
                self._add(entry)
        self.used = {found for entry in entries if entry.is_image for found in self.of(entry).values()}

    def of(self, image: Entry) -> dict[str, Entry]:
        """The sidecars of an image by suffix."""
        found = {suffix: self._find(image.name, suffix) for suffix in SIDECARS}
        return {suffix: entry for suffix, entry in found.items() if entry is not None}

    def _add(self, entry: Entry) -> None:
        stem, suffix = split_suffix(entry.name)
        sample = _Sample() if self._samples is None else self._samples[webdataset_key(entry.name)]
        sample.images += entry.is_image
        if suffix in SIDECARS:
            self._by_name[stem + suffix] = sample.last[suffix] = entry
            sample.sidecars[suffix] += 1

    def _find(self, name: str, suffix: str) -> Entry | None:
        stem = split_suffix(name)[0]
        names = [stem + suffix, name + suffix]
        if self._samples is not None:
            key = webdataset_key(name)
            names.append(key + suffix)
            sample = self._samples[key]
            if sample.images == 1 and sample.sidecars[suffix] == 1:
                return sample.last[suffix]
        return next((self._by_name[one] for one in names if one in self._by_name), None)


def _image(entry: Entry, chosen: str, sidecars: dict[str, Entry]) -> Importable:
    name = printable(entry.name)
    metadata: dict[str, object] = {"path": name}
    caption: str | None = None
    try:
        if ".id" in sidecars:  # our own export, whose metadata is complete
            chosen, metadata = _text(sidecars[".id"]).strip(), {}
            if fault := id_fault(chosen):
                raise UnreadableFile(fault)
        if ".json" in sidecars:
            metadata |= _metadata(sidecars[".json"])
        if ".txt" in sidecars:
            caption = _text(sidecars[".txt"])
            caption = caption if ".id" in sidecars else caption.strip() or None
        data = entry.data
        if not data:
            raise UnreadableFile("is empty")
        return Importable(id=chosen, name=name, data=data, metadata=metadata, caption=caption)
    except UnreadableFile as err:
        return Importable(id=chosen, name=name, fault=str(err))


def _metadata(entry: Entry) -> dict[str, object]:
    try:
        read = json.loads(_text(entry))
    except (ValueError, RecursionError) as err:
        raise UnreadableFile(f"its metadata {printable(entry.name)} is not JSON: {err}") from err
    return read if isinstance(read, dict) else {"json": read}


def _text(entry: Entry) -> str:
    name = printable(entry.name)
    if entry.size > MAX_SIDECAR_BYTES:
        raise UnreadableFile(f"its {name} is over {MAX_SIDECAR_BYTES >> 20} MiB")
    try:
        return entry.data.decode("utf-8-sig")
    except UnreadableFile as err:
        raise UnreadableFile(f"its {name}: {err}") from err
    except UnicodeDecodeError as err:
        raise UnreadableFile(f"its {name} is not UTF-8") from err


def _why_other(name: str) -> str:
    suffix = split_suffix(name)[1]
    if suffix in SIDECARS:
        return f"no image belongs to this {suffix}"
    return f"{printable(suffix)} is no image format that the service reads" if suffix else "no image by its first bytes"
