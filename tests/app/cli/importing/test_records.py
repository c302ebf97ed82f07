"""NDJSON: lines as the service exports and lists them, and lines that hold or name an image."""

import base64
import json
import os
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


def fetched(gallery: str, item: str) -> bytes:
    if f"/galleries/{gallery}/items/{item}/image" != URL:
        raise UnreadableFile(f"{item}: gone")
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
        ({"id": "a", "path": "\ud800.png"}, "cannot be read"),
        (
            {"path": "\udc80\udfff.png", "image": {"base64": base64.b64encode(PNG).decode()}, "\ud800": 1},
            "field '\ufffd'",
        ),
        ({"id": "\ud800", "path": "1.png"}, "'\ufffd' is not valid"),
        ({"id": "a", "path": "x" * 300}, "File name too long"),
        ({"id": "a", "path": "loop.png"}, "cannot be read"),
        ({"id": "a", "path": "pipe.png"}, "is a device, socket or pipe"),
        ([1], "no JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_other_lines_are_rejected_with_a_reason(tmp_path: Path, row: object, reason: str) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    found = read(lines(tmp_path, row, {"path": "1.png"}), fetch=fetched)
    assert [one.id for one in added(found).values()] == ["1.png"]
    assert reason in faults(found)["items.ndjson (line 1)"]


def test_half_pairs_of_surrogates_make_an_id(tmp_path: Path) -> None:
    image = {"base64": base64.b64encode(PNG).decode()}
    one, other = read(lines(tmp_path, {"path": "\ud800.png", "image": image}, {"path": "\udc80.png", "image": image}))
    assert one.fault is other.fault is None
    assert one.id != other.id
