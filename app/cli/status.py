"""`vermouth status`: whether the service is ready, and what it serves."""

import typer

from app.cli.output import AsJson, print_record
from app.cli.service import DEFAULT_URL, Key, Url, connect

status_app = typer.Typer(add_completion=False)


@status_app.command()
def status(as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show whether the service is ready, its release, bundle and galleries; exit 1 if it is not ready."""
    with connect(url, key, retry_s=0) as client:
        ready, release, bundle = client.ready(), client.version(), client.bundle()
        record = {"url": url, "status": ready.status, "version": release.version, "bundle": bundle.name}
        record |= {"fingerprint": bundle.fingerprint, "device": f"{bundle.device} {bundle.dtype}"}
        galleries = {one.name: one.count for one in client.galleries().galleries}
        print_record(record | {"features": list(ready.features), "galleries": galleries}, as_json=as_json)
