"""Adds images to a gallery in parallel batches, and accounts for every file of the source."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import httpx
from rich.progress import Progress

from app.cli.importing.files import Importable, Skip
from app.cli.service_calls import ServiceRefused, existing_ids, problem_sentence, send
from app.imaging.formats import has_image_bytes

MAX_BATCH_BYTES = 16 << 20  # large files make small batches
_REFUSES_WHOLE_BATCH = frozenset({400, 413, 415, 422})  # because of one image, which halving finds


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
    client: httpx.Client,
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
        ServiceRefused: a request failed for good; a second run continues from there.
        UnreadableSource: the source is damaged.
    """
    done = Imported() if done is None else done
    known = existing_ids(client, gallery)
    task = bar.add_task(f"importing into {gallery}", total=None)
    running: dict[Future[list[str]], int] = {}
    stop = threading.Event()

    def collect(finished: Iterable[Future[list[str]]]) -> None:
        for future in finished:
            size = running.pop(future)
            rejected = future.result()
            done.rejected += rejected
            done.added += size - len(rejected)
            bar.update(task, completed=done.added + len(done.rejected))

    pool = ThreadPoolExecutor(workers, thread_name_prefix="import")
    try:
        for part in _batches(_new(images, known, done), batch):
            if len(running) >= 2 * workers:  # bounds the batches in memory, and keeps every worker busy
                collect(wait(running, return_when=FIRST_COMPLETED).done)
            running[pool.submit(_add_or_halve, client, gallery, part, stop)] = len(part)
        while running:
            collect(wait(running, return_when=FIRST_COMPLETED).done)
    finally:  # after an error or Ctrl-C, requests that are under way still count
        stop.set()
        pool.shutdown(cancel_futures=True)
        collect([one for one in running if not one.cancelled() and one.exception() is None])
    return done


def check_images(
    images: Iterable[Importable], done: Imported, check_metadata: Callable[[dict[str, object]], str | None]
) -> None:
    """Counts what an import into an empty gallery would add, as far as that shows without the service."""
    for one in _new(images, set(), done):
        fault = check_metadata(one.metadata)
        if fault is None and one.data and not has_image_bytes(one.data):
            fault = "its first bytes are of no image format that the service reads"
        if fault is None:
            done.added += 1
        else:
            done.rejected.append(f"{one.name}: {fault}")


def add_items(
    client: httpx.Client,
    gallery: str,
    part: Sequence[Importable],
    *,
    wait: bool = True,
    stop: threading.Event | None = None,
) -> list[str]:
    """Adds images in one request and returns a line for each rejected one; `wait` until searches find the others."""
    files = [("image", (one.id, one.data)) for one in part]
    items = [{"id": one.id, "metadata": one.metadata, "caption": one.caption} for one in part]
    url, params = f"/galleries/{gallery}/items", {"wait": str(wait).lower()}
    answer = send(client, "POST", url, stop=stop, params=params, files=files, data={"items": json.dumps(items)})
    return [
        f"{one.name}: {result['problem']['detail']}"
        for one, result in zip(part, answer.json()["results"], strict=True)
        if result["status"] == "rejected"
    ]


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
            else:
                yield one
    done.is_complete = True


def _batches(images: Iterable[Importable], size: int) -> Iterator[list[Importable]]:
    part: list[Importable] = []
    held = 0
    for one in images:
        if part and (len(part) == size or held + len(one.data) > MAX_BATCH_BYTES):
            yield part
            part, held = [], 0
        part.append(one)
        held += len(one.data)
    if part:
        yield part


def _add_or_halve(client: httpx.Client, gallery: str, part: Sequence[Importable], stop: threading.Event) -> list[str]:
    """Adds one batch; halves a batch that is refused as a whole until the image at fault is found."""
    try:
        return add_items(client, gallery, part, wait=False, stop=stop)
    except ServiceRefused as err:
        if err.answer is None or err.answer.status_code not in _REFUSES_WHOLE_BATCH:
            raise
        if len(part) == 1:
            return [f"{part[0].name}: {problem_sentence(err.answer)}"]
        middle = len(part) // 2
        halves = (part[:middle], part[middle:])
        return [line for half in halves for line in _add_or_halve(client, gallery, half, stop)]
