"""A few of the images of `python -m tests.hardening.served_images`, to the server of these tests."""

import httpx
import pytest

from tests.hardening.served_images import FORMATS, Report, send_all

pytestmark = pytest.mark.server


def test_damaged_images_of_ten_formats_are_answered_or_refused_as_themselves(client: httpx.Client) -> None:
    report = Report()
    send_all(client, range(5 * len(FORMATS)), 7, report)
    assert report.faults == []
    assert {kind: found.total() for kind, found in report.statuses.items()} == dict.fromkeys(FORMATS, 5)
