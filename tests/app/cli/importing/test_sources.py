"""Which sources arguments stand for."""

import os
from pathlib import Path

import pytest

from app.cli.importing.files import UnreadableSource
from app.cli.importing.sources import find_sources
from tests.app.cli.importing.sources import PNG, read, write_tar


def test_patterns_stand_for_shards_and_prefixes_keep_ids_apart(tmp_path: Path) -> None:
    for at in range(3):
        write_tar(tmp_path / f"s-{at:06}.tar", [("0.png", PNG)])
    found = read(tmp_path / "s-{000000..000001}.tar", tmp_path / "s-000002.tar")
    assert [one.name for one in found] == [f"s-{at:06}.tar: 0.png" for at in range(3)]
    assert [one.id for one in read(tmp_path / "s-000000.tar", prefix="s0-")] == ["s0-0"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("s-{0..3}.tar", "s-1.tar does not exist"),
        ("s-{3..1}.tar", "no source"),
        ("s-{0..999999}.tar", "no source"),
        ("none.zip", "does not exist"),
        ("x.doc", "is no folder"),
        ("x.tar.zst", "zstd -d"),
        ("x" * 300 + ".zip", "does not exist"),
        ("s-{0..1}" + "x" * 300, "does not exist"),
        ("pipe.ndjson", "is a device, socket or pipe"),
    ],
)
def test_wrong_sources_are_refused_before_anything_is_read(tmp_path: Path, name: str, reason: str) -> None:
    for file in ("s-0.tar", "x.doc", "x.tar.zst"):
        (tmp_path / file).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.ndjson")
    with pytest.raises(UnreadableSource, match=reason):
        find_sources([str(tmp_path / name)])
