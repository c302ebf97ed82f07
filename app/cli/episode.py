"""`vermouth episode`: classes taught from a few examples, for `vermouth classify`."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from app.cli.importing.files import is_system
from app.cli.main import CommandError, progress
from app.cli.output import AsCsv, AsJson, Rows
from app.cli.service import DEFAULT_URL, Key, Url, connect, naming_refused
from app.cli.sources import Source, find_images

if TYPE_CHECKING:
    from vermouth_client import Client
    from vermouth_client.models import EpisodeEntry, EpisodeReport

episode_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Classes taught from a few examples.")
MAX_REQUEST_BYTES = 16 << 20  # of files; the service takes 32 MiB of base64 a request
MAX_REQUEST_IMAGES = 64
_Examples = Annotated[
    list[str],
    typer.Argument(metavar="EXAMPLES", help="A folder with a subfolder a class, or LABEL=SOURCE; see `classify`."),
]
_Episode = Annotated[str, typer.Argument(help="Id or name of an episode.")]
Example = tuple[str, Source]


class Method(StrEnum):
    """Values of `--method`."""

    prototype = "prototype"
    ridge = "ridge"
    cache = "cache"


@episode_app.command("list")
def list_command(as_json: AsJson = False, as_csv: AsCsv = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List the episodes."""
    with Rows(as_json=as_json, as_csv=as_csv) as rows, connect(url, key) as client:
        for one in _episodes(client):
            ways = {way.label: way.shots for way in one.ways}
            rows.add({"id": one.id, "name": one.name, "method": one.method, "version": one.version, "examples": ways})


@episode_app.command("show")
def show_command(
    episode: _Episode, as_json: AsJson = False, as_csv: AsCsv = False, url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """Show the classes of an episode, and how many of their examples it recognizes when they are left out."""
    with Rows(as_json=as_json, as_csv=as_csv) as rows, connect(url, key) as client:
        found = client.episode(episode_id(client, episode))
        for way in found.ways:
            row = {} if found.leave_one_out is None else found.leave_one_out.confusion.get(way.label, {})
            record = {"label": way.label, "examples": way.shots, "recognized": row.get(way.label)}
            rows.add(record, confusion=row, support=[one.id for one in way.support])


@episode_app.command("create")
def create_command(
    examples: _Examples,
    name: Annotated[str | None, typer.Option(help="Name, which commands take instead of the id.")] = None,
    method: Annotated[Method | None, typer.Option(help="How features are compared.")] = None,
    ttl_hours: Annotated[float | None, typer.Option(min=0.001, help="Hours until the service forgets it.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Teach two or more classes; prints the new episode's id."""
    from vermouth_client import ServiceError  # here: help must not import a client

    found = _examples(examples)
    parts, sources = list(_requests(found)), [source for _, source in found]
    if len(parts[0]) < 2:
        raise CommandError(f"An episode has two classes or more, and only {next(iter(parts[0]))!r} is given.")
    options: dict[str, Any] = {"name": name, "method": method and method.value}
    options["ttl_seconds"] = None if ttl_hours is None else 3600 * ttl_hours
    with Rows(as_json=as_json, as_csv=as_csv) as rows, connect(url, key) as client, naming_refused(client, sources):
        made = client.create_episode(parts[0], **options)
        try:
            rows.add(_record(_add(client, made, parts[1:])))
        except ServiceError:
            client.delete_episode(made.id)  # it lacks examples
            raise


@episode_app.command("add")
def add_command(
    episode: _Episode,
    examples: _Examples,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Add examples to an episode; a new label adds a class."""
    found = _examples(examples)
    parts, sources = list(_requests(found)), [source for _, source in found]
    with Rows(as_json=as_json, as_csv=as_csv) as rows, connect(url, key) as client:
        known = client.episode(episode_id(client, episode))
        with naming_refused(client, sources):
            rows.add(_record(_add(client, known, parts)))


@episode_app.command("delete")
def delete_command(episode: _Episode, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Delete an episode."""
    with connect(url, key) as client:
        client.delete_episode(episode_id(client, episode))


def episode_id(client: "Client", wanted: str) -> str:
    """The id of the episode of this id or name. Raises CommandError if there is none, or several have the name."""
    episodes = list(_episodes(client))
    found = [one.id for one in episodes if one.id == wanted] or [one.id for one in episodes if one.name == wanted]
    if len(found) > 1:
        raise CommandError(f"{len(found)} episodes have the name {wanted!r}: give an id, one of {', '.join(found)}.")
    if not found:
        raise CommandError(f"There is no episode {wanted!r}: `vermouth episode list` shows all.")
    return found[0]


def _episodes(client: "Client") -> Iterator["EpisodeEntry"]:
    cursor: str | None = None
    while True:
        page = client.episodes(cursor=cursor)
        yield from page.episodes
        cursor = page.next_cursor
        if cursor is None:
            return


def _examples(arguments: Sequence[str]) -> list[Example]:
    """Labelled images; the classes take turns, so that the first request has examples of several."""
    by_label: dict[str, list[Source]] = {}
    for argument in arguments:
        label, equals, source = argument.partition("=")
        if equals and label and not Path(argument).exists():
            by_label.setdefault(label, []).extend(find_images([source]))
            continue
        folder = Path(argument)
        classes = (
            sorted(one for one in folder.iterdir() if one.is_dir() and not is_system(one.name))
            if folder.is_dir()
            else []
        )
        if not classes:
            raise CommandError(f"{argument} is no folder with a subfolder for each class: give one, or LABEL=SOURCE.")
        for one in classes:
            by_label.setdefault(one.name, []).extend(find_images([str(one)]))
    turns = zip_longest(*([(label, one) for one in sources] for label, sources in by_label.items()))
    return [example for turn in turns for example in turn if example is not None]


def _requests(examples: Sequence[Example]) -> Iterator[dict[str, list[Any]]]:
    """The images by label, in as many parts as requests are needed."""
    part: dict[str, list[Any]] = {}
    count = size = 0
    for label, source in examples:
        one = source.image.stat().st_size if isinstance(source.image, Path) else 0
        if part and (count == MAX_REQUEST_IMAGES or size + one > MAX_REQUEST_BYTES):
            yield part
            part, count, size = {}, 0, 0
        try:
            part.setdefault(label, []).append(source.read())
        except ValueError as err:
            raise CommandError(f"{source.name}: {err}") from err
        count, size = count + 1, size + one
    yield part


def _add(client: "Client", episode: "EpisodeReport", parts: Sequence[dict[str, list[Any]]]) -> "EpisodeReport":
    with progress(Console(stderr=True), is_shown=len(parts) > 1) as bar:
        for part in bar.track(parts, description="adding examples"):
            episode = client.add_support(episode.id, part, version=episode.version)
    return episode


def _record(episode: "EpisodeReport") -> dict[str, Any]:
    examples = {way.label: way.shots for way in episode.ways}
    return {"id": episode.id, "name": episode.name, "version": episode.version, "examples": examples}
