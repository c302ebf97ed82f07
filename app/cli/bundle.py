"""`vermouth bundle`: writes, checks, pulls and describes bundles."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import typer
from rich import filesize
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from models.bundle.download import HubFile
    from models.bundle.pull import Plan

bundle_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Pull, list, write and check bundles.")

_console = Console(stderr=True, soft_wrap=True)


class _PullProgress:
    """Prints the plan of a pull, then bars with bytes, speed and remaining time; without a terminal, a line a file."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        self._tasks: list[TaskID] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars.live.is_started:
            self._bars.stop()

    def planned(self, plan: "Plan") -> None:
        table = _table("component", "repository", "commit", "files", "size", "to download")
        for part in plan.sources:
            row = (part.name, part.source.repo, part.commit[:12], str(len(part.files)), _size(part.size_bytes))
            table.add_row(*row, _size(sum(part.missing_bytes.values())))
        Console(stderr=True).print(table)
        _console.print(f"{plan.bundle}: licence {plan.licence}", markup=False, highlight=False)
        room = f"{_size(plan.free_bytes)} are free in {plan.cache}"
        _console.print(f"{_size(plan.missing_bytes)} to download, {room}", markup=False, highlight=False)
        self._tasks = [self._bars.add_task("all files", total=plan.missing_bytes)]
        if plan.missing_bytes <= plan.free_bytes:
            self._bars.start()

    def started(self, file: "HubFile", missing_bytes: int) -> None:
        for task in self._tasks[1:]:
            self._bars.remove_task(task)
        self._tasks[1:] = [self._bars.add_task(Path(file.name).name, total=missing_bytes)]
        if not self._bars.console.is_terminal:
            _console.print(f"{file.repo} {file.name}: {_size(missing_bytes)}", markup=False, highlight=False)

    def advanced(self, count: int) -> None:
        for task in self._tasks:
            self._bars.advance(task, count)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("files", "size") else "left")
    return table


def _size(count: int) -> str:
    return filesize.decimal(count)


@bundle_app.command("pack")
def pack(
    folder: Annotated[Path, typer.Argument(help="Holds heads/; and vae/, unet/, scheduler/ without --shared.")],
    name: Annotated[str, typer.Option(help="The bundle's name.")] = "mini",
    good_for: Annotated[str, typer.Option(help="What users may expect of its answers, and what not.")] = "",
    shared: Annotated[str, typer.Option(help="Folder of vae/, unet/ and scheduler/, relative to FOLDER.")] = ".",
) -> None:
    """Write bundle.json with the SHA-256 of every file."""
    from models.bundle.pack import write_manifest

    write_manifest(
        folder, name=name, licence="CC-BY-SA-4.0", attribution="see ATTRIBUTION.md", good_for=good_for, shared=shared
    )
    _console.print(f"wrote {folder / 'bundle.json'}", markup=False)


@bundle_app.command("verify")
def verify(
    bundle: Annotated[Path, typer.Argument(help="A name such as sd15, or the folder of a bundle.")],
    profile: Annotated[str | None, typer.Option(help="Load this profile.")] = None,
) -> None:
    """Check every file and load the bundle on the CPU, as the server does."""
    from models.bundle.build import load_bundle  # here: torch takes seconds to import, help does not need it
    from models.bundle.files import find_bundle

    loaded = load_bundle(
        find_bundle(bundle), device="cpu", profile=profile
    )  # in fp32, so that the fingerprint does not depend on the machine
    _console.print(f"{loaded.info.name} is complete, fingerprint {loaded.info.fingerprint}", markup=False)


@bundle_app.command("pull")
def pull(
    bundle: Annotated[Path, typer.Argument(help="A name such as sd15, or the folder of a bundle.")],
    profile: Annotated[str | None, typer.Option(help="Download this profile's components too.")] = None,
) -> None:
    """Download hub sources, verify them and pin commits and digests in bundle.lock.json.

    Goes on where an interrupted pull stopped. A complete bundle needs no connection.
    """
    from models.bundle.files import find_bundle
    from models.bundle.pull import pull as pull_sources

    folder = find_bundle(bundle)
    with _PullProgress() as progress:
        lock = pull_sources(folder, progress, profile=profile)
    name = bundle if profile is None else f"{bundle} with the profile {profile}"
    _console.print(f"{name} is complete: " + (f"wrote {lock}" if lock else "nothing to download"), markup=False)


@bundle_app.command("list")
def list_bundles(
    folders: Annotated[list[Path] | None, typer.Argument(help="Further bundles, by folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the bundles below weights/: complete or not, size on this disk, features, licence."""
    from models.bundle.files import find_bundle, named_bundles
    from models.bundle.summary import summarize

    found = [summarize(folder) for folder in (*named_bundles().values(), *map(find_bundle, folders or ()))]
    if as_json:
        fields = ("name", "folder", "is_complete", "size_bytes", "heads", "features", "licence", "profiles")
        rows = [{field: getattr(summary, field) for field in fields} for summary in found]
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    table = _table("name", "state", "size", "features", "licence")
    for each in found:
        state = "complete" if each.is_complete else "not pulled"
        features = f"{', '.join(each.features)} ({each.heads})"
        table.add_row(each.name, state, _size(each.size_bytes), features, each.licence)
    Console().print(table)


@bundle_app.command("show")
def show(
    bundle: Annotated[Path, typer.Argument(help="A name such as sd15, or the folder of a bundle.")],
    profile: Annotated[str | None, typer.Option(help="Show this profile.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a bundle: components, sources, commits, sizes, tasks, profiles, and fingerprints once it is complete."""
    from models.bundle.files import find_bundle
    from models.bundle.summary import summarize

    summary = summarize(find_bundle(bundle), profile)
    if as_json:
        from pydantic_core import to_json

        typer.echo(to_json(summary, indent=2).decode())
        return
    state = "complete" if summary.is_complete else f"not complete, run `vermouth bundle pull {bundle}`"
    profiles = [name if done else f"{name} (not pulled)" for name, done in summary.profiles.items()]
    lines = {
        "folder": str(summary.folder),
        "state": state,
        "size": _size(summary.size_bytes),
        "licence": summary.licence,
        "attribution": summary.attribution,
        "good for": summary.good_for or "–",
        "features": f"{', '.join(summary.features)} ({summary.heads})",
        "taps": ", ".join(summary.taps),
        "profiles": ", ".join(profiles) or "none",
    } | {f"fingerprint {kind}": digest for kind, digest in summary.fingerprints.items()}
    console = Console(soft_wrap=True)
    console.print(summary.name, style="bold", markup=False)
    for name, value in lines.items():
        console.print(f"  {name}: {value}", markup=False, highlight=False)
    parts = _table("component", "source", "revision", "files", "size")
    for part in summary.components:
        files = f"{len(part.files) - len(part.missing)} of {len(part.files)}"
        parts.add_row(part.name, part.origin, part.revision[:12], files, _size(part.size_bytes))
    tasks = _table("task", "resolution", "time step", "images compared by", "templates")
    for name, task in summary.tasks.items():
        compared = ", ".join(f"{feature} {weight:g}" for feature, weight in task.features.items())
        compared = "dense" if name == "segmentation" else compared
        tasks.add_row(name, f"{task.resolution} px", str(task.timestep), compared, ", ".join(task.templates))
    Console().print(parts, tasks)


@bundle_app.command("random")
def random(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    arch: Annotated[
        Literal["tiny", "tiny-sd", "tiny-sd-heads", "sd15", "sd15-heads", "sd21", "sd21-heads"],
        typer.Option(help="Shapes: small ones of mini or of Stable Diffusion, or those of 1.5 or 2.1 (6 GB)."),
    ] = "tiny",
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Write a bundle of random weights in the layout of a trained or published one."""
    from models.bundle.pack import write_random

    write_random(out, arch=arch, seed=seed)
    _console.print(f"wrote {out / 'bundle.json'}", markup=False)
