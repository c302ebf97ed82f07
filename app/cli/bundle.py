"""`vermouth bundle`: writes, checks and pulls bundles."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

bundle_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Write and check bundles.")

_console = Console(stderr=True, soft_wrap=True)


@bundle_app.command("pack")
def pack(
    folder: Annotated[Path, typer.Argument(help="Holds heads/; and vae/, unet/, scheduler/ without --shared.")],
    name: Annotated[str, typer.Option(help="The bundle's name.")] = "mini",
    shared: Annotated[str, typer.Option(help="Folder of vae/, unet/ and scheduler/, relative to FOLDER.")] = ".",
) -> None:
    """Write bundle.json with the SHA-256 of every file."""
    from models.bundle.pack import write_manifest

    write_manifest(folder, name=name, licence="CC-BY-SA-4.0", attribution="see ATTRIBUTION.md", shared=shared)
    _console.print(f"wrote {folder / 'bundle.json'}", markup=False)


@bundle_app.command("verify")
def verify(folder: Annotated[Path, typer.Argument(help="A bundle.")]) -> None:
    """Check every file and load the bundle on the CPU, as the server does."""
    from models.bundle.build import load_bundle  # here: torch takes seconds to import, help does not need it

    loaded = load_bundle(folder, device="cpu")  # in fp32, so that the fingerprint does not depend on the machine
    _console.print(f"{loaded.info.name} is complete, fingerprint {loaded.info.fingerprint}", markup=False)


@bundle_app.command("pull")
def pull(folder: Annotated[Path, typer.Argument(help="A bundle with hub sources.")]) -> None:
    """Download hub sources, verify them and pin commits and digests in bundle.lock.json."""
    from models.bundle.pull import HuggingFaceHub
    from models.bundle.pull import pull as pull_sources

    lock = pull_sources(folder, HuggingFaceHub(), report=lambda line: _console.print(line, markup=False))
    _console.print(f"wrote {lock}", markup=False)


@bundle_app.command("random")
def random(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    arch: Annotated[Literal["tiny", "sd15"], typer.Option(help="Shapes: small for tests, or as SD 1.5.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Write a bundle of random weights in the layout of a trained one."""
    from models.bundle.pack import write_random

    write_random(out, arch=arch, seed=seed)
    _console.print(f"wrote {out / 'bundle.json'}", markup=False)
