"""A small count of the fuzzed requests; `make prove-hardening` sends thousands."""

from pathlib import Path

import pytest

from tests.hardening.requests import run

pytestmark = pytest.mark.server


def test_fuzzed_requests_provoke_no_failure(tmp_path: Path) -> None:
    report = run(150, 19, tmp_path)
    assert not report.failures
    assert sum(report.statuses.values()) > 100
    assert report.statuses[200] + report.statuses[201] + report.statuses[204] > 5
