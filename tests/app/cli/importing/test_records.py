"""NDJSON: lines as the service exports and lists them, and lines that hold or name an image."""

import base64
import json
from pathlib import Path

import pytest

from app.cli.importing.files import Skip, UnreadableFile
from tests.app.cli.importing.sources import PNG, added, faults, read, skips

URL = "/galleries/g/items/a.b/image"


def lines(root: Path, *rows: object) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (root / "items.ndjson").write_text("\ufeff" + text, encoding="utf-8")
    (root / "1.png").write_bytes(PNG)
    return root / "items.ndjson"


def fetched(path: str) -> bytes:
    if path != URL:
        raise UnreadableFile(f"{path}: gone")
    return PNG


def test_images_are_inside_beside_or_on_the_service(tmp_path: Path) -> None:
    text = base64.b64encode(PNG).decode()
    found = read(
        lines(
            tmp_path,
            {"id": "a", "image": {"base64": text}, "metadata": {"n": 1}, "caption": "c", "vector": [1.0]},
            {"image": {"base64": f"data:image/png;base64,{text}"}},
            "",
            {"path": "1.png"},
            {"id": "a.b", "image_url": f"https://other.example/prefix{URL}?sig=1", "metadata": None},
        ),
        fetch=fetched,
    )
    assert skips(found) == {Skip.BLANK: 1}
    images = [*added(found).values()]
    assert [one.data for one in images] == [PNG] * 4
    assert images[0].metadata == {"n": 1}
    assert (images[0].id, images[0].caption, images[2].id) == ("a", "c", "1.png")
    assert images[1].id.startswith("i_")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "a", "metadata": {}}, "has no image"),
        ({"id": "a", "year": 1, "path": "1.png"}, "the unknown field 'year'"),
        ({"id": "/", "path": "1.png"}, "is not valid"),
        ({"id": "a", "path": "../1.png"}, "outside"),
        ({"id": "a", "path": "2.png"}, "no such file"),
        ({"id": "a", "image": {"base64": "*"}}, "not valid base64"),
        ({"id": "a", "image": {"svg": "<svg/>"}}, "has no image"),
        ({"id": "a", "image_url": "http://127.0.0.1/x"}, "no item's image"),
        ({"id": "a", "image_url": "/galleries/g/items/b/image"}, "gone"),
        ({"id": "a", "path": "1.png", "metadata": [1]}, "must be an object"),
        ([1], "no JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_other_lines_are_rejected_with_a_reason(tmp_path: Path, row: object, reason: str) -> None:
    found = read(lines(tmp_path, row, {"path": "1.png"}), fetch=fetched)
    assert [one.id for one in added(found).values()] == ["1.png"]
    assert reason in faults(found)["items.ndjson (line 1)"]
