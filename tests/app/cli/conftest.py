"""The in-process app of the API tests, for commands that talk to a service."""

from tests.app.api.conftest import app, client, tasks

__all__ = ["app", "client", "tasks"]
