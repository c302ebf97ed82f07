"""The in-process app of the API tests, for commands that talk to a service."""

from tests.app.api.conftest import app, tasks

__all__ = ["app", "tasks"]
