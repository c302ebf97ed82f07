"""A few protocol faults; `make prove-hardening` commits a thousand."""

import pytest

from tests.hardening.protocol import run

pytestmark = pytest.mark.server


def test_protocol_faults_leave_the_server_as_it_was() -> None:
    figures = run(100, seed=7, settle_s=1.0)
    # Health is timed on a quiet machine only, and never-reading clients are closed after a grace of ten seconds.
    assert set(figures["failures"]) <= {"health"}, figures  # type: ignore[call-overload]  # a list by then
