"""`vermouth classset`: the stored class names that `segment --class-set` finds."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from app.cli.output import AsCsv, AsJson, Rows
from app.cli.service import DEFAULT_URL, Key, Url, connect

classset_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Class names stored for `segment`.")
_Name = Annotated[str, typer.Argument(help="Name of the class set.")]


@classset_app.command("list")
def list_command(as_json: AsJson = False, as_csv: AsCsv = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List the class sets."""
    with Rows(as_json=as_json, as_csv=as_csv) as rows, connect(url, key) as client:
        for one in client.class_sets().class_sets:
            rows.add({"name": one.name, "version": one.version, "classes": one.count})


@classset_app.command("show")
def show_command(
    name: _Name, as_json: AsJson = False, as_csv: AsCsv = False, url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """Show the classes of a class set."""
    with Rows(as_json=as_json, as_csv=as_csv) as rows, connect(url, key) as client:
        for one in client.class_set(name).classes:
            rows.add({"name": one.name, "synonyms": one.synonyms, "templates": one.templates})


@classset_app.command("put")
def put_command(
    name: _Name,
    classes: Annotated[list[str], typer.Argument(metavar="CLASS", help="Class name, or name=synonym,synonym.")],
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Create a class set, or replace it."""
    with Rows(as_json=as_json, as_csv=as_csv) as rows, connect(url, key) as client:
        done = client.put_class_set(name, [class_of(one) for one in classes])
        rows.add({"name": done.name, "version": done.version, "classes": len(done.classes)})


@classset_app.command("delete")
def delete_command(name: _Name, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Delete a class set."""
    with connect(url, key) as client:
        client.delete_class_set(name)


def classes_of(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The classes of `--class`: one text alone lists names between commas, as one field of a form does."""
    is_list = len(texts) == 1 and "=" not in texts[0]
    return [class_of(one) for one in (texts[0].split(",") if is_list else texts)]


def class_of(text: str) -> dict[str, Any]:
    """The class that `name` or `name=synonym,synonym` describes, in the service's form."""
    name, _, synonyms = text.partition("=")
    listed = [one.strip() for one in synonyms.split(",") if one.strip()]
    return {"name": name.strip(), "synonyms": listed} if listed else {"name": name.strip()}
