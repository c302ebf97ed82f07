"""Archives, folders and tables as people have them: every file is added, skipped or rejected, and types are right."""

import base64
import csv
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from app.cli.importing.adding import Imported, check_images
from app.cli.importing.files import Importable, Skip, UnreadableSource
from tests.app.cli.importing.sources import PNG, added, faults, member, read, skips, write_tar

Random = np.random.Generator
LETTERS = [*"abcXYZ019_-", "é", "猫", " ", "(", "&"]
IMAGES = [".png", ".PNG", ".jpg", ".JPEG", ".jfif", ".webp", ".Gif", ".bmp", ".tif", ".avif"]
JUNK = [
    "__MACOSX/{}/._1.png", "._{}.png", ".DS_Store", "{}/.DS_Store", "Thumbs.db", "{}/THUMBS.DB", "Desktop.ini",
    "@eaDir/{}.png/SYNOPHOTO_THUMB_M.jpg", "{}/@eaDir/a.jpg", ".thumbnails/{}.png", ".Trashes/{}.jpg", "{}/Icon\r",
    "$RECYCLE.BIN/{}.png", "System Volume Information/{}.jpg", "#recycle/{}.png", ".@__thumb/{}.jpg", "lost+found/a",
]  # fmt: skip


def word(random: Random) -> str:
    """A name with a letter that is no space at both ends."""
    return "a" + "".join(random.choice(LETTERS, int(random.integers(0, 6)))) + str(int(random.integers(1 << 30)))


def files_and_junk(random: Random) -> tuple[dict[str, bytes], dict[str, bytes]]:
    files = {}
    for _ in range(int(random.integers(1, 6))):
        folders = "".join(f"{word(random)}/" for _ in range(int(random.integers(0, 3))))
        files[folders + word(random) + random.choice(IMAGES)] = PNG
    chosen = random.choice(JUNK, int(random.integers(3, 9)), replace=False)
    return files, {one.format(word(random)): b"\0\5\x16\7" if random.integers(2) else PNG for one in chosen}


def shuffled(random: Random, names: Sequence[str]) -> list[str]:
    return [names[at] for at in random.permutation(len(names))]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_18_system_files_are_skipped_and_everything_is_counted(random: Random, tmp_path: Path, kind: str) -> None:
    files, junk = files_and_junk(random)
    everything = files | junk
    order = shuffled(random, [*everything])
    source = tmp_path / {"folder": "Folder", "zip": "A.ZIP", "tar": "A.Tar"}[kind]
    if kind == "folder":
        for name in order:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(everything[name])
    elif kind == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            for name in order:
                archive.writestr(name, everything[name])
    else:
        write_tar(source, [(name, everything[name]) for name in order])
    found = read(source)
    assert len(found) == len(everything)
    assert set(added(found)) == set(files)
    assert skips(found) == {Skip.SYSTEM: len(junk)}
    assert faults(found) == {}
    assert len({one.id for one in added(found).values()}) == len(files)
    done = Imported()
    check_images(found, done, lambda _: None)
    assert done.added + done.skipped.total() + len(done.rejected) == done.found == len(everything)


def test_18_odd_entries_of_a_zip(random: Random, tmp_path: Path) -> None:
    name = word(random)
    with zipfile.ZipFile(tmp_path / "B.ZIP", "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for one in (f"cat\\{name}.png", f"../{name}.png", "dup.png", f"{name}/", f"{name}/notes.txt"):
            archive.writestr(one, PNG)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("dup.png", PNG)
    found = read(tmp_path / "B.ZIP")
    assert len(found) == 5  # a folder is no file
    done = Imported()
    check_images(found, done, lambda _: None)
    assert (done.added, len(done.rejected), done.skipped.total()) == (3, 1, 1)
    assert not any(tmp_path.parent.glob("*.png"))


WORDS = {"cp932": "猫ソ表あア", "gbk": "猫狗鱼树", "big5": "貓狗魚許功", "cp949": "고양이개", "cp866": "котпёс"}


@pytest.mark.parametrize("encoding", WORDS)
def test_18_names_of_a_zip_in_another_code_page(random: Random, tmp_path: Path, encoding: str) -> None:
    letters = random.choice(list(WORDS[encoding]), int(random.integers(1, 5)))
    name = f"{''.join(letters)}{int(random.integers(100))}.png"
    raw = name.encode(encoding)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x" * len(raw), PNG)
        archive.writestr("é.png", PNG)  # with the flag of UTF-8
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"x" * len(raw), raw))
    assert set(added(read(tmp_path / "a.zip", zip_names=encoding))) == {name, "é.png"}
    notes: list[str] = []
    found = read(tmp_path / "a.zip", note=notes.append)
    assert len(added(found)) == 2
    assert len(notes) == (0 if _is_utf8(raw) else 1)


def _is_utf8(raw: bytes) -> bool:
    return raw.decode("utf-8", "replace").encode() == raw


def samples(random: Random) -> tuple[list[tuple[str, bytes]], dict[str, dict[str, object]]]:
    """Files of a webdataset, and the metadata that each image is to have."""
    files: list[tuple[str, bytes]] = []
    expected: dict[str, dict[str, object]] = {}
    for number in range(int(random.integers(2, 6))):
        key = f"{number:03}" if random.integers(2) else f"d{number}/x{number}"
        metadata = {"n": number}
        kind = int(random.integers(5))
        names = {
            0: [f"{key}.jpg"],
            1: [f"{key}.left.png", f"{key}.right.png"],
            2: [f"{key}.input.jpg"],
            3: [f"{key}.2.0.JPG"],  # periods in the base name
            4: [f"{key}.jpg", f"{key}.seg.png"],
        }[kind]
        # Of the key, or of the only image's own name.
        sidecar = f"{names[0].rpartition('.')[0]}.json" if kind == 3 else f"{key}.json"
        files += [(name, PNG) for name in names] + [(sidecar, json.dumps(metadata).encode())]
        expected |= {name: {"path": name, **metadata} for name in names}
    return files, expected


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_2_samples_of_a_tar_keep_their_metadata_in_any_order(random: Random, tmp_path: Path, mode: str) -> None:
    files, expected = samples(random)
    order = [files[at] for at in random.permutation(len(files))]
    first = order[[name for name, _ in order].index(next(iter(expected)))][0]
    link = member("linked.png", link=first)
    found = read(write_tar(tmp_path / ("a.tar" + mode[1:].replace(":", ".")), order, [link], mode))
    assert len(found) == len(files) + 1
    assert {name: one.metadata for name, one in added(found).items()} == expected | {
        "linked.png": {"path": "linked.png"}
    }
    assert all(one.data == PNG for one in added(found).values())
    assert len({one.id for one in added(found).values()}) == len(expected) + 1


def test_2_a_caption_of_another_name_is_of_the_only_image(random: Random, tmp_path: Path) -> None:
    key = str(int(random.integers(1000)))
    files = [(f"{key}.input.jpg", PNG), (f"{key}.outputs.txt", b"a cat")]
    found = read(write_tar(tmp_path / "a.tar", files if random.integers(2) else files[::-1]))
    (image,) = added(found).values()
    assert image.caption == "a cat"
    assert skips(found) == {Skip.SIDECAR: 1}


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "cp1252"]


def table(random: Random, root: Path) -> tuple[bytes, list[dict[str, object]]]:
    """A table as a spreadsheet or a script writes it, and the metadata of each row."""
    separator, ending = random.choice([",", ";", "\t", "|"]), random.choice(["\n", "\r\n", "\r"])
    encoding = random.choice(ENCODINGS)
    rows: list[dict[str, object]] = []
    cells: list[list[str]] = []
    for at in range(int(random.integers(2, 6))):
        (root / f"{at}.png").write_bytes(PNG)
        row: dict[str, object] = {
            "year": int(random.integers(1900, 2100)),
            "ok": bool(random.integers(2)),
            "score": float(np.round(random.uniform(-5, 5), 3)) + 0.0001,
            "code": f"0{int(random.integers(1000))}",
            "note": f"caf\u00e9{separator}x",
        }
        rows.append(row)
        written = str(row["ok"])
        written = written.lower() if random.integers(2) else written.upper()
        name = random.choice([f"{at}.png", f".\\{at}.png", f"./{at}.png"])
        cells.append([name, str(row["year"]), written, str(row["score"]), str(row["code"]), str(row["note"])])
    header = [random.choice(["path", "Path", " PATH "]), "year", " ok ", "score", "code", "note"]
    out = io.StringIO()
    if random.integers(3) == 0:
        out.write(f"sep={separator}{ending}")
    writer = csv.writer(out, delimiter=separator, lineterminator=ending)
    writer.writerow(header)
    writer.writerows(cells)
    out.write(separator * 5 + ending)
    return out.getvalue().encode(encoding), rows


def test_17_tables_of_every_dialect_have_types(random: Random, tmp_path: Path) -> None:
    data, rows = table(random, tmp_path)
    (tmp_path / "Table.CSV").write_bytes(data)
    notes: list[str] = []
    found = read(tmp_path / "Table.CSV", note=notes.append)
    assert [one.metadata for one in added(found).values()] == rows
    assert skips(found) == {Skip.BLANK: 1}
    assert faults(found) == {}
    assert "columns year: integer, ok: boolean, score: number, code: text, note: text" in notes[-1]
    first = read(tmp_path / "Table.CSV", text=("year",))[0]
    assert first.metadata["year"] == str(rows[0]["year"])


def test_lines_of_ndjson_have_images_in_every_spelling(random: Random, tmp_path: Path) -> None:
    plain = base64.b64encode(PNG + random.bytes(int(random.integers(3)))).decode()
    spellings = [
        plain,
        plain.rstrip("="),
        plain.translate(str.maketrans("+/", "-_")),
        f"data:image/png;base64,{plain}",
        "data:image/png;base64," + plain.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    ]
    lines = [json.dumps({"id": f"i{at}", "image": {"base64": text}}) for at, text in enumerate(spellings)]
    lines.insert(int(random.integers(len(lines))), "")
    (tmp_path / "a.NDJSON").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    found: list[Importable] = read(tmp_path / "a.NDJSON")
    assert {one.data for one in added(found).values()} == {base64.b64decode(plain)}
    assert len(added(found)) == len(spellings)
    assert skips(found) == {Skip.BLANK: 1}


def test_damaged_archives_stop_or_are_counted(random: Random, tmp_path: Path) -> None:
    files, junk = files_and_junk(random)
    whole = write_tar(tmp_path / "a.tar", [*(files | junk).items()]).read_bytes()
    count = len(files) + len(junk)
    for _ in range(10):
        data = bytearray(whole)
        data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
        (tmp_path / "b.tar").write_bytes(data)
        try:
            assert len(read(tmp_path / "b.tar")) == count
        except UnreadableSource as err:
            assert str(tmp_path) in str(err)  # noqa: PT017 - a whole count is as good
