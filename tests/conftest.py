"""Tests of a file run in one worker of pytest-xdist, and so do those that share the demo gallery's server."""

from collections.abc import Sequence
from pathlib import Path

import pytest

END_TO_END = Path(__file__).parent / "e2e"


@pytest.hookimpl(tryfirst=True)  # before the plugin reads the groups
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Name each test's group, for `--dist loadgroup`."""
    for item in items:
        group = "e2e" if item.path.is_relative_to(END_TO_END) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
