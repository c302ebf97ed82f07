"""Adds what a source holds to a gallery, and accounts for every file of it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from rich.progress import Progress

from app.cli.importing.files import Importable, Skip
from app.imaging.formats import has_image_bytes
from vermouth_client import Client, ImportReport, NewItem
from vermouth_client.errors import NotFound
from vermouth_client.svg import is_svg, utf8_svg


@dataclass(slots=True)
class Imported:
    """Result of an import: `found` = added + skipped + rejected + not_sent."""

    found: int = 0
    added: int = 0
    skipped: Counter[Skip] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)  # a line for each
    others: list[str] = field(default_factory=list)  # a line for each file that is no image
    is_complete: bool = False  # the source was read to its end

    @property
    def not_sent(self) -> int:
        """How many images an interrupted import did not send."""
        return self.found - self.added - self.skipped.total() - len(self.rejected)

    def table(self, added: str = "added") -> str:
        """Returns the numbers, one a line."""
        rows = [(added, self.added), ("skipped", self.skipped.total())]
        rows += [(f"  {reason}", self.skipped[reason]) for reason in Skip if self.skipped[reason]]
        rows += [("rejected", len(self.rejected))]
        rows += [("not sent", self.not_sent)] if self.not_sent else []
        rows += [("in the source" if self.is_complete else "read so far", self.found)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {count:>7}" for name, count in rows)


def import_images(
    client: Client,
    gallery: str,
    images: Iterable[Importable],
    *,
    batch: int,
    workers: int,
    bar: Progress,
    done: Imported | None = None,
) -> Imported:
    """Adds images whose ids the gallery lacks, `batch` per request; creates the gallery if needed.

    Args:
        done: is filled in, so that the caller has the numbers if the import ends early.

    Raises:
        ImportStopped: a request failed for good, or the source is damaged; a second run continues from there.
    """
    done = Imported() if done is None else done
    unread = iter(images)
    first = [*islice(unread, 1)]  # a source that cannot be read creates no gallery
    known = existing_ids(client, gallery)
    names: dict[str, str] = {}
    counted = 0
    task = bar.add_task(f"importing into {gallery}", total=None)

    def items() -> Iterator[NewItem]:
        for one in _new(chain(first, unread), known, done):
            names[one.id] = one.name
            yield NewItem(one.data, one.id, one.metadata, one.caption)

    def count(report: ImportReport) -> None:
        nonlocal counted
        done.added = report.added
        new, counted = report.rejected[counted:], len(report.rejected)
        done.rejected += [f"{names[one.id]}: {one.detail}" for one in new]
        bar.update(task, completed=done.added + len(done.rejected))

    client.import_items(
        gallery, items(), batch=batch, concurrency=workers, wait_until_searchable=False, on_progress=count
    )
    return done


def existing_ids(client: Client, gallery: str) -> set[str]:
    """Returns the ids in a gallery; creates the gallery if it does not exist."""
    try:
        return client.item_ids(gallery)
    except NotFound:
        client.put_gallery(gallery)
        return set()


def check_images(images: Iterable[Importable], done: Imported, fault_of: Callable[[Importable], str | None]) -> None:
    """Counts what an import into an empty gallery would add, as far as that shows without the service."""
    for one in _new(images, set(), done):
        fault = fault_of(one)
        if fault is None and one.data and not (has_image_bytes(one.data) or is_svg(one.data)):
            fault = "its first bytes are of no image format that the service reads"
        if fault is None:
            done.added += 1
        else:
            done.rejected.append(f"{one.name}: {fault}")


def _new(images: Iterable[Importable], known: set[str], done: Imported) -> Iterator[Importable]:
    seen: set[str] = set()
    for one in images:
        done.found += 1
        if one.skip is not None:
            done.skipped[one.skip] += 1
            if one.skip is Skip.OTHER:
                done.others.append(f"{one.name}: {one.fault}")
        elif one.fault is not None:
            done.rejected.append(f"{one.name}: {one.fault}")
        elif one.id in seen:
            done.rejected.append(f"{one.name}: its id {one.id!r} was already used in this import")
        else:
            seen.add(one.id)
            if one.id in known:
                done.skipped[Skip.KNOWN] += 1
                continue
            try:
                ready = replace(one, data=utf8_svg(one.data))
            except ValueError as err:
                done.rejected.append(f"{one.name}: {err}")
            else:
                yield ready
    done.is_complete = True
