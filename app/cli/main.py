"""The `vermouth` command: one file a group, imported when the group is used, so that help stays quick."""

import typer

app = typer.Typer(name="vermouth", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.callback()
def vermouth() -> None:
    """Visual perception on a frozen diffusion backbone: the server, its bundles, training and evaluation."""


@app.command("serve", context_settings=_PASS_ON)
def serve(context: typer.Context) -> None:
    """Start the server."""
    from app.cli.serve import serve_app

    _run(serve_app, context)


@app.command("keys", context_settings=_PASS_ON)
def keys(context: typer.Context) -> None:
    """Make API keys."""
    from app.cli.keys import keys_app

    _run(keys_app, context)


@app.command("data", context_settings=_PASS_ON)
def data(context: typer.Context) -> None:
    """Build the training data set."""
    from app.cli.data import data_app

    _run(data_app, context)


@app.command("bundle", context_settings=_PASS_ON)
def bundle(context: typer.Context) -> None:
    """Write and check bundles."""
    from app.cli.bundle import bundle_app

    _run(bundle_app, context)


@app.command("train", context_settings=_PASS_ON)
def train(context: typer.Context) -> None:
    """Train the parts of a bundle."""
    from app.cli.train import train_app

    _run(train_app, context)


@app.command("eval", context_settings=_PASS_ON)
def evaluate(context: typer.Context) -> None:
    """Measure a bundle by protocol."""
    from app.cli.eval import eval_app

    _run(eval_app, context)


@app.command("gallery", context_settings=_PASS_ON)
def gallery(context: typer.Context) -> None:
    """Fill galleries of a running service."""
    from app.cli.gallery import gallery_app

    _run(gallery_app, context)


@app.command("db", context_settings=_PASS_ON)
def db(context: typer.Context) -> None:
    """Check, rebuild and vacuum the state."""
    from app.cli.db import db_app

    _run(db_app, context)


@app.command("backup", context_settings=_PASS_ON)
def backup(context: typer.Context) -> None:
    """Copy the state into a folder, while the service runs."""
    from app.cli.db import backup_app

    _run(backup_app, context)


@app.command("restore", context_settings=_PASS_ON)
def restore(context: typer.Context) -> None:
    """Bring a copy of the state into an empty one."""
    from app.cli.db import restore_app

    _run(restore_app, context)


@app.command("reembed", context_settings=_PASS_ON)
def reembed(context: typer.Context) -> None:
    """Go over to another bundle, or back."""
    from app.cli.reembed import reembed_app

    _run(reembed_app, context)


def _run(group: typer.Typer, context: typer.Context) -> None:
    group(args=context.args, prog_name=f"vermouth {context.info_name}")
