"""Encodings of SVG files."""

import codecs

import pytest

from vermouth_client.svg import utf8_svg

BODY = "<svg xmlns='http://www.w3.org/2000/svg'><title>Häuser 家</title></svg>"


def declared(encoding: str) -> str:
    return f'<?xml version="1.0" encoding="{encoding}" standalone="no"?>\n{BODY}'


@pytest.mark.parametrize(
    "data",
    [
        declared("UTF-16").encode("utf-16"),
        codecs.BOM_UTF16_BE + declared("utf-16").encode("utf-16-be"),
        declared("utf-16").encode("utf-16-le"),
        declared("utf-16").encode("utf-16-be"),
        declared("utf-32").encode("utf-32"),
        declared("gb18030").encode("gb18030"),
        declared("gb18030").replace('"', "'").encode("gb18030"),
    ],
)
def test_a_declared_encoding_becomes_utf_8_without_its_declaration(data: bytes) -> None:
    assert utf8_svg(data).decode().lstrip() == BODY


@pytest.mark.parametrize(
    "data",
    [
        BODY.encode(),
        codecs.BOM_UTF8 + declared("UTF-8").encode(),
        declared("iso-8859-1").encode(),  # it is UTF-8 all the same
        declared("utf-16").encode("ascii", "xmlcharrefreplace"),
        b"",
        b"\x89PNG\r\n\x1a\n<svg ",
        b"\xff\xfe\xff",
        "no image".encode("utf-16"),
        "<p>é</p>".encode("latin-1"),
    ],
)
def test_any_other_file_stays_as_it_is(data: bytes) -> None:
    assert utf8_svg(data) is data


@pytest.mark.parametrize("encoding", ["utf-8", "klingon", "rot13", "shift_jis", "utf-16", None])
def test_an_encoding_that_is_wrong_or_unknown_is_named(encoding: str | None) -> None:
    text = BODY if encoding is None else declared(encoding)
    with pytest.raises(ValueError, match=f"is not in {encoding or 'UTF-8'}: save it"):
        utf8_svg(text.replace("家", "").replace("ä", "\xfd").encode("latin-1"))
