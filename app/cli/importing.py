"""The work of `vermouth gallery import`: batches in parallel, what is there already left alone."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import httpx
from rich.progress import Progress, TaskID

from app.cli.import_sources import Importable
from app.cli.service_calls import ServiceRefused, existing_ids, send

MAX_BATCH_BYTES = 16 << 20
_REFUSED_AS_A_WHOLE = frozenset({400, 413, 415, 422})


@dataclass(slots=True)
class Imported:
    """What an import did: `rejected` has one line a file."""

    added: int = 0
    skipped: int = 0
    rejected: list[str] = field(default_factory=list)


def import_pictures(
    client: httpx.Client, gallery: str, pictures: Iterable[Importable], *, batch: int, workers: int, bar: Progress
) -> Imported:
    """Add pictures whose ids the gallery lacks; the gallery is made when there is none.

    Args:
        workers: requests at once; no more than twice as many batches are held in memory.

    Raises:
        app.cli.gallery.ServiceRefused: a request failed for good; a second run goes on from there.
        app.cli.import_sources.UnreadableSource: the source is damaged.
    """
    known = existing_ids(client, gallery)
    done = Imported()
    task = bar.add_task(f"importing into {gallery}", total=None)
    with ThreadPoolExecutor(workers, thread_name_prefix="import") as pool:
        running: set[Future[list[str]]] = set()
        sizes: dict[Future[list[str]], int] = {}
        for part in _batches(_new(pictures, known, done), batch):
            if len(running) >= 2 * workers:
                running = _collect(running, sizes, done, bar, task)
            future = pool.submit(_send, client, gallery, part)
            running.add(future)
            sizes[future] = len(part)
        while running:
            running = _collect(running, sizes, done, bar, task)
    return done


def _new(pictures: Iterable[Importable], known: set[str], done: Imported) -> Iterator[Importable]:
    seen: set[str] = set()
    for one in pictures:
        if one.fault is not None:
            done.rejected.append(f"{one.name}: {one.fault}")
        elif one.id in seen:
            done.rejected.append(f"{one.name}: its id {one.id!r} came before")
        elif one.id in known:
            done.skipped += 1
        else:
            yield one
        seen.add(one.id)


def _batches(pictures: Iterable[Importable], size: int) -> Iterator[list[Importable]]:
    part: list[Importable] = []
    held = 0
    for one in pictures:
        if part and (len(part) == size or held + len(one.data) > MAX_BATCH_BYTES):
            yield part
            part, held = [], 0
        part.append(one)
        held += len(one.data)
    if part:
        yield part


def _send(client: httpx.Client, gallery: str, part: Sequence[Importable]) -> list[str]:
    """Add one batch; a line for each picture that was rejected. What refuses a batch as a whole is found by halving."""
    try:
        return _send_once(client, gallery, part)
    except ServiceRefused as err:
        if err.answer is None or err.answer.status_code not in _REFUSED_AS_A_WHOLE:
            raise
        if len(part) > 1:
            middle = len(part) // 2
            return [*_send(client, gallery, part[:middle]), *_send(client, gallery, part[middle:])]
        return [f"{part[0].name}: {err.answer.json()['detail']}"]


def _send_once(client: httpx.Client, gallery: str, part: Sequence[Importable]) -> list[str]:
    files = [("image", (one.id, one.data)) for one in part]
    items = [{"id": one.id, "metadata": one.metadata, "caption": one.caption} for one in part]
    answer = send(
        client,
        "POST",
        f"/galleries/{gallery}/items",
        params={"wait": "false"},
        files=files,
        data={"items": json.dumps(items)},
    )
    results = answer.json()["results"]
    return [
        f"{one.name}: {result['problem']['detail']}"
        for one, result in zip(part, results, strict=True)
        if result["status"] == "rejected"
    ]


def _collect(
    running: set[Future[list[str]]], sizes: dict[Future[list[str]], int], done: Imported, bar: Progress, task: TaskID
) -> set[Future[list[str]]]:
    finished, rest = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        rejected, size = future.result(), sizes.pop(future)
        done.rejected += rejected
        done.added += size - len(rejected)
        bar.update(task, completed=done.added + len(done.rejected))
    return rest
