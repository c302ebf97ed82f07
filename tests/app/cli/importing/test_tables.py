"""Tables as spreadsheets and scripts write them: dialect, encoding, types and rows."""

import codecs
from pathlib import Path

import pytest

from app.cli.importing.files import Skip, UnreadableSource
from tests.app.cli.importing.sources import PNG, added, faults, read, skips


def table(root: Path, text: str | bytes, name: str = "table.csv") -> Path:
    for image in ("1.png", "2.png", "cat/3.png"):
        (root / image).parent.mkdir(exist_ok=True)
        (root / image).write_bytes(PNG)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


def notes_of(path: Path, **options: object) -> list[str]:
    notes: list[str] = []
    read(path, note=notes.append, **options)
    return notes


PLAIN = "path,year,ok\n1.png,2020,true\n2.png,2021,false\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        PLAIN.replace(",", ", "),
        PLAIN.replace("path", " PATH "),
        PLAIN.replace("\n", "\r\n"),
        "sep=,\n" + PLAIN,
        '"sep=;"\r\n' + PLAIN.replace(",", ";"),
        "sep=:\n" + PLAIN.replace(",", ":"),
        "\n,,\n" + PLAIN,
        PLAIN.replace("1.png", ".\\1.png").replace("2.png", "./2.png"),
        PLAIN.replace("true", "TRUE").replace("false", "False"),
        codecs.BOM_UTF8 + PLAIN.encode(),
        PLAIN.encode("utf-16"),
        codecs.BOM_UTF16_BE + PLAIN.replace(",", "\t").encode("utf-16-be"),
        PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-16-be"),
    ],
)
def test_common_dialects_read_alike(tmp_path: Path, content: str | bytes) -> None:
    found = read(table(tmp_path, content))
    assert [(one.id, one.metadata) for one in added(found).values()] == [
        ("1.png", {"year": 2020, "ok": True}),
        ("2.png", {"year": 2021, "ok": False}),
    ]
    assert faults(found) == {}


def test_types_are_of_whole_columns_and_noted(tmp_path: Path) -> None:
    rows = [
        "path,n,x,ok,code,mixed,big,hash,none,price",
        "1.png,1,1,true,00123,1,9007199254740993,9223372036854775808,,-0.5",
        "2.png,-2,2.5,false,7,a,-9223372036854775808,1,,1e400",
        "cat\\3.png,,1e3,,8,,,,,",
    ]
    path = table(tmp_path, "\n".join(rows))
    one, two, three = added(read(path)).values()
    big = {"big": 9007199254740993, "hash": "9223372036854775808", "price": "-0.5"}
    assert one.metadata == {"n": 1, "x": 1, "ok": True, "code": "00123", "mixed": "1", **big}
    assert two.metadata["x"] == 2.5
    assert two.metadata["big"] == -(2**63)
    assert three.metadata == {"x": 1000.0, "code": "8"}  # an empty cell is no field
    assert three.id.startswith("cat_3.png-")
    types = "n: integer, x: number, ok: boolean, code: text, mixed: text, big: integer, hash: text, none: empty"
    assert notes_of(path) == [f"table.csv: columns {types}, price: text"]


def test_columns_can_stay_text(tmp_path: Path) -> None:
    path = table(tmp_path, PLAIN)
    first, _ = read(path, text=("Year",))
    assert first.metadata == {"year": "2020", "ok": True}
    with pytest.raises(UnreadableSource, match="no column 'colour'"):
        read(path, text=("colour",))


def test_rows_are_skipped_or_rejected_with_their_number(tmp_path: Path) -> None:
    content = (
        'path,id,caption,note\n1.png,a,"a\n""b""","x\ny"\n\n,,,\ngone.png,b\ncat,c\n,d\n2.png,e,f,g,h\n2.png,/\n'
        "https://example.org/1.png,f\n../secret.png,g\n2.png,h,,,\n" + "x" * 300 + ",i\n"
    )
    found = read(table(tmp_path, content))
    assert len(found) == 12
    assert skips(found) == {Skip.BLANK: 2}
    first, last = added(found).values()
    assert (first.id, first.caption, first.metadata) == ("a", 'a\n"b"', {"note": "x\ny"})
    assert last.name == "2.png (row 12)"
    assert faults(found) == {
        "gone.png (row 5)": "there is no such file",
        "cat (row 6)": "is a folder",
        " (row 7)": "names no file",
        "2.png (row 8)": "has 5 cells for 4 columns",
        "2.png (row 9)": "the id '/' is not valid: use letters, digits and ._:-",
        "https://example.org/1.png (row 10)": "is a URL; only files beside the table are imported",
        "../secret.png (row 11)": "lies outside the table's folder",
        "x" * 300 + " (row 13)": "File name too long",
    }


def test_a_long_cell_ends_no_table(tmp_path: Path) -> None:
    path = table(tmp_path, f"path,note\n1.png,{200_000 * 'x'}\n2.png,y\n")
    assert [one.metadata for one in read(path)] == [{"note": 200_000 * "x"}, {"note": "y"}]


def test_windows_1252_is_read_and_noted(tmp_path: Path) -> None:
    path = table(tmp_path, "path;name\n1.png;caf\u00e9 \u20ac\n".encode("cp1252"))
    (one,) = read(path)
    assert one.metadata == {"name": "caf\u00e9 \u20ac"}
    assert "Windows-1252" in notes_of(path)[0]


def test_a_column_without_a_name_is_noted(tmp_path: Path) -> None:
    path = table(tmp_path, ",path\n0,1.png\n")
    assert read(path)[0].metadata == {}
    assert notes_of(path) == ["table.csv: a column without a name is not imported"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("file;year\n1.png;2\n", "no column 'path'; its first line has 'file', 'year'"),
        ("path,a,a\n1.png,1,2\n", "two columns 'a'"),
        ('path,note\n1.png,"open\n2.png,x\n', "cannot be read after row 1"),
        (b"path\n\x81\xff\n", "neither UTF-8"),
        ("", "no column 'path'; it is empty.$"),
    ],
)
def test_what_would_be_misread_stops_the_import(tmp_path: Path, content: str | bytes, reason: str) -> None:
    with pytest.raises(UnreadableSource, match=reason):
        read(table(tmp_path, content))
