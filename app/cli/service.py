"""The service that a command calls: its options, the client, and one sentence for whatever goes wrong."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from app.cli.main import CommandError, progress

if TYPE_CHECKING:
    from app.cli.sources import Source
    from vermouth_client import Client, ImageLike, Item

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(envvar="VERMOUTH_URL", help="URL of the service.")]
Key = Annotated[str | None, typer.Option(envvar="VERMOUTH_API_KEY", help="API key, where the service wants one.")]
CONCURRENCY = 4
_PROBE_S, _POLL_S = 10.0, 0.5
_OF_ONE_IMAGE = frozenset(
    "body-too-large image-too-large inference-failed malformed too-much-work undecodable-image"
    " unsupported-media".split()
)
_IMAGE_FIELDS = ("image", "sketch", "queries")


@contextmanager
def connect(
    url: str, key: str | None, *, timeout_s: float = 30.0, retry_s: float = 60.0, is_started: bool = True
) -> Iterator["Client"]:
    """A client of a service that answers.

    Args:
        timeout_s: of one attempt at a call.
        retry_s: how long a call is repeated while the service loads, restarts or is busy.
        is_started: whether the service listens already; if not, it is waited for as long.

    Raises:
        CommandError: no service is there, or a call inside failed.
    """
    import httpx  # here and below: help must not import a client where it need not

    from vermouth_client import Client, ImportStopped, VermouthError

    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as err:
        raise CommandError(f"{url!r} is no URL of a service: {err}.") from err
    if address.scheme not in ("http", "https") or not address.host:
        raise CommandError(f"{url!r} is no URL of a service: write it as {DEFAULT_URL}.")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise CommandError("The API key holds characters that no key has: copy it again.")
    try:
        with Client(url, key=key, timeout_s=_PROBE_S, retry_s=0) as probe:
            _find(probe, url, wait_s=0 if is_started else retry_s)
        with Client(url, key=key, timeout_s=timeout_s, retry_s=retry_s) as client:
            try:
                yield client
            except ImportStopped as err:  # the cause may be the source's, or a fault of a command
                raise err.__cause__ or err from None
    except (VermouthError, httpx.HTTPError) as err:
        raise CommandError(sentence(err, key)) from err


def _find(client: "Client", url: str, *, wait_s: float) -> None:
    """Asks whether the service is ready, until it is or the time is over. Raises CommandError if none is there."""
    from vermouth_client import NoAnswer, ServiceError

    until_s = time.monotonic() + wait_s
    while True:
        is_over = time.monotonic() >= until_s
        try:
            client.ready()
            return
        except NoAnswer as err:
            if is_over or isinstance(err.__cause__, ValueError | KeyError):  # another program answers there
                advice = f"Start it with `vermouth serve`, or name another than {url} with --url or VERMOUTH_URL."
                raise CommandError(f"{err} {advice}") from err
        except ServiceError as err:
            if err.status != 503:
                raise CommandError(f"No Vermouth service is at {url}: {err.detail}") from err
            if is_over:  # it loads or ends: the calls wait for it
                return
        time.sleep(_POLL_S)


def sentence(error: BaseException, key: str | None = None) -> str:
    """What an error of the client says, in one line; of a refused key, where it was set."""
    from vermouth_client import ServiceError

    if not isinstance(error, ServiceError):
        return str(error) or type(error).__name__
    if error.status == 401 and key:
        return "The service does not know this key. Correct --key or VERMOUTH_API_KEY, whichever names it."
    fields = [f"{one.get('field')} {one.get('message')}" for one in error.errors]
    line = f"{error.detail} ({'; '.join(fields)})" if len(fields) > 1 else error.detail  # which holds a single one
    return f"{line} Set --key or VERMOUTH_API_KEY." if error.status == 401 else line


def ask(
    sources: Sequence["Source"], call: Callable[["ImageLike"], T], description: str
) -> Iterator[tuple["Source", T]]:
    """Yields each source with its answer, in order; several requests are under way at a time.

    A source that is refused is reported on stderr, and the others go on.

    Raises:
        CommandError: at the end, if sources were refused.
        VermouthError: a call failed for a reason that is not its image's.
    """
    console = Console(stderr=True, soft_wrap=True)
    refused = 0
    remaining = iter(sources)
    waiting: deque[tuple[Source, Future[T]]] = deque()
    with progress(console, is_shown=len(sources) > 1) as bar, _threads() as pool:
        task = bar.add_task(description, total=len(sources))
        while True:
            for source in islice(remaining, 2 * CONCURRENCY - len(waiting)):
                waiting.append((source, pool.submit(lambda one: call(one.read()), source)))
            if not waiting:
                break
            source, answer = waiting.popleft()
            error = answer.exception()
            bar.update(task, advance=1)
            if error is None:
                yield source, answer.result()
                continue
            if not _is_of_one_image(error, source.image):
                raise error
            if len(sources) == 1:
                raise CommandError(f"{source.name}: {sentence(error)}")
            refused += 1
            console.print(f"refused {source.name}: {sentence(error)}", style="yellow", markup=False, highlight=False)
    if refused:
        raise CommandError(f"{refused} of {len(sources)} images were refused, as listed above.")


@contextmanager
def naming_refused(client: "Client", sources: Sequence["Source"]) -> Iterator[None]:
    """Asks for each source alone, and so names those that are refused, where a call with all of them is."""
    from vermouth_client import ServiceError

    try:
        yield
    except ServiceError as err:
        fields = [str(one.get("field")) for one in err.errors]
        if err.code in {*_OF_ONE_IMAGE, "invalid", "not-found"} and all(one.startswith("ways") for one in fields):
            for _ in ask(sources, lambda one: client.embed([one]), "checking the images"):
                pass
        raise


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for the calls; after an error or Ctrl-C, nobody waits for those under way."""
    pool = ThreadPoolExecutor(CONCURRENCY)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _is_of_one_image(error: BaseException, image: "ImageLike") -> bool:
    from vermouth_client import Item, ServiceError

    if not isinstance(error, ServiceError):
        return isinstance(error, OSError | ValueError | TypeError)  # it could not be read here
    if error.code == "invalid":
        return not error.errors or str(error.errors[0].get("field")).startswith(_IMAGE_FIELDS)
    if error.code == "not-found":  # a gallery, an episode or a class set is missing for all sources
        return isinstance(image, Item) and error.detail in _missing(image)
    return error.code in _OF_ONE_IMAGE


def _missing(item: "Item") -> tuple[str, str]:
    """The sentences in which the service says that a source's item, or its gallery, does not exist."""
    return f"There is no item {item.id!r} in gallery {item.gallery!r}.", f"There is no gallery {item.gallery!r}."
