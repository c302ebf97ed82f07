"""Folders, ZIP archives and webdataset tars as people have them: every file is added, skipped or rejected."""

import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from app.cli.importing.files import MAX_FILE_BYTES, Skip, UnreadableSource
from tests.app.cli.importing.sources import PNG, added, faults, member, read, skips, write_tar
from vermouth_client.bulk import item_id

JUNK = {
    "__MACOSX/cat/._1.png": b"\0\5\x16\7" + b"\0" * 4096,
    "cat/._1.png": b"\0\5\x16\7",
    ".DS_Store": b"\0",
    "Thumbs.db": b"\0",
    "cat/desktop.ini": b"",
    "@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg": PNG,
    ".thumbnails/1.png": PNG,
}
FILES = {
    "cat/1.png": PNG,
    "cat/1.json": b'{"year": 2020}',
    "cat/1.txt": "a caf\u00e9".encode(),
    "cat/2.JPG": PNG,
    "cat/2.JPG.json": b"\xef\xbb\xbf[1]",
    "x.jfif": PNG,
    "plain": PNG,
    "README": b"text",
    "notes.txt": b"none of this name",
    "drawing.eps": b"%!PS",
}


def make_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root / "images"


def make_zip(root: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(root / "B.ZIP", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return root / "B.ZIP"


@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_folder_and_zip_account_for_every_file(tmp_path: Path, make: object) -> None:
    assert callable(make)
    found = read(make(tmp_path, FILES | JUNK))
    assert len(found) == len(FILES) + len(JUNK)
    assert faults(found) == {}
    assert skips(found) == {Skip.SYSTEM: len(JUNK), Skip.SIDECAR: 3, Skip.OTHER: 3}
    images = added(found)
    assert {name: one.metadata for name, one in images.items()} == {
        "cat/1.png": {"path": "cat/1.png", "year": 2020},
        "cat/2.JPG": {"path": "cat/2.JPG", "json": [1]},
        "plain": {"path": "plain"},
        "x.jfif": {"path": "x.jfif"},
    }
    assert images["cat/1.png"].caption == "a caf\u00e9"
    assert {one.fault for one in found if one.skip is Skip.OTHER} == {
        "no image by its first bytes",
        "no image belongs to this .txt",
        ".eps is no image format that the service reads",
    }


def test_links_and_unreadable_files_of_a_folder_are_listed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a.png": PNG, "b.png": PNG, "b.json": b"{", "c.png": PNG, "c.txt": b"\xff"})
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    (folder / "copy.png").symlink_to(folder / "a.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    with (folder / "large.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    found = read(folder)
    assert [*added(found)] == ["a.png", "copy.png"]
    assert skips(found) == {Skip.SIDECAR: 2, Skip.OTHER: 2}
    reasons = faults(found)
    assert reasons["b.png"].startswith("its metadata b.json is not JSON")
    assert reasons["c.png"] == "its c.txt is not UTF-8"
    assert reasons["gone.png"] == "No such file or directory"
    assert reasons["large.png"] == "is over 32 MiB"
    assert len(found) == 10


def test_links_to_themselves_and_to_what_never_ends_are_listed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a.png": PNG})
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("loop", "loop"), ("loop.png", "loop.png"), ("pipe.png", tmp_path / "pipe")):
        (folder / name).symlink_to(target)
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "long.png").symlink_to("x" * 300)
    found = read(folder)
    assert [*added(found)] == ["a.png"]
    assert {one.name: one.fault for one in found if one.skip is Skip.OTHER} == {
        "loop": "no image by its first bytes",
        "pipe.png": "a device, socket or pipe",
        "zero.png": "a device, socket or pipe",
    }
    assert faults(found) == {"long.png": "File name too long", "loop.png": "Too many levels of symbolic links"}


def test_names_that_are_no_utf_8_are_printable(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {os.fsdecode(b"\xff\x1b.png"): PNG, os.fsdecode(b"a.\xff"): PNG})
    other, found = read(folder)
    assert found.name == found.metadata["path"] == "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.png"
    assert other.fault == ".\N{REPLACEMENT CHARACTER} is no image format that the service reads"


def set_flag(data: bytes, name: bytes, flag: int) -> bytes:
    """Sets a general purpose flag of an entry in its local header and in the directory."""
    changed = bytearray(data)
    at = -1
    while (at := data.find(name, at + 1)) >= 0:
        for header, length, flags in ((b"PK\3\4", 30, 6), (b"PK\1\2", 46, 8)):
            if data[at - length : at - length + 4] == header:
                changed[at - length + flags] |= flag
    return bytes(changed)


def test_names_and_damage_of_zip_entries(tmp_path: Path) -> None:
    path = tmp_path / "odd.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cat\\2.png", "../evil.png", "/root.png", "secret.png", "dup.png", "damaged.png"):
            archive.writestr(name, PNG)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("dup.png", PNG)
        archive.writestr("UTF8NAME.png", PNG)
        archive.writestr("SJ.png", PNG)
    data = set_flag(path.read_bytes(), b"secret.png", 1)
    data = data.replace(b"UTF8NAME.png", "caf\u00e9\u00e9.x".encode()[:8] + b".png")
    data = data.replace(b"SJ.png", "猫".encode("cp932") + b".png")
    at = data.index(b"damaged.png") + len(b"damaged.png") + 20
    path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    found = read(path)
    assert len(found) == 9
    assert faults(found) == {"secret.png": "is encrypted", "damaged.png": "cannot be unpacked"}
    images = [one for one in found if one.fault is None]
    assert {"cat/2.png", "../evil.png", "/root.png"} <= {one.name for one in images}
    assert any(one.name == "caf\u00e9\u00e9x.png" or "caf\u00e9" in one.name for one in images)
    assert [one.id for one in images].count("dup.png") == 2  # the second is rejected when it is added
    assert not (tmp_path.parent / "evil.png").exists()


def test_names_of_a_zip_without_the_flag_of_utf8(tmp_path: Path) -> None:
    """Names as Windows writes them in Japan and Germany; ソ and 表 hold the byte of a backslash."""
    path, names = tmp_path / "a.zip", {"1": "猫/ソ表.png", "2": "Bär.png", "3": "犬.png", "4": "plain.png"}
    raw = {"1": names["1"].encode("cp932"), "2": names["2"].encode("cp437"), "3": names["3"].encode("cp932")}
    field = b"\1" + struct.pack("<I", zlib.crc32(raw["3"])) + names["3"].encode()
    other = b"\1" + struct.pack("<I", 7) + b"other.png"  # of a name before the entry was renamed
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in names.items():
            entry = zipfile.ZipInfo(number * len(raw.get(number, name)))
            for content in (field, other) if number == "3" else [other]:
                entry.extra += struct.pack("<HH", 0x7075, len(content)) + content
            archive.writestr(entry, PNG)
    data = path.read_bytes()
    for number, content in (raw | {"4": b"plain.png"}).items():
        data = data.replace(number.encode() * len(content), content)
    path.write_bytes(data)
    notes: list[str] = []
    assert {"Bär.png", names["3"], "plain.png"} <= set(added(read(path, note=notes.append)))
    assert len(notes) == 1
    assert "2 names that are not utf-8 were read as code page 437" in notes[0]
    found = added(read(path, zip_names="cp932", note=notes.append))
    assert {names["1"], names["3"], "plain.png"} < set(found)
    assert len({one.id for one in found.values()}) == 4
    assert len(notes) == 1


def test_zip_bombs_are_rejected_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", b"\0" * (MAX_FILE_BYTES + 1))
        archive.writestr("liar.png", b"\0" * (MAX_FILE_BYTES + 1))
        archive.writestr("good.png", PNG)
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"liar.png") - 46
    data[directory + 24 : directory + 28] = struct.pack("<I", 100)  # claims to be small
    path.write_bytes(data)
    found = read(path)
    assert [*added(found)] == ["good.png"]
    assert faults(found) == {"bomb.png": "is over 32 MiB", "liar.png": "cannot be unpacked"}


def test_tars_of_public_reports_lose_nothing(tmp_path: Path) -> None:
    def metadata(files: list[tuple[str, bytes]], **links: tarfile.TarInfo) -> dict[str, tuple[str, dict[str, object]]]:
        found = read(write_tar(tmp_path / "x.TAR", files, [*links.values()]))
        assert len(found) == len(files) + len(links)
        return {name: (one.id, one.metadata) for name, one in added(found).items()}

    # 1: periods in the base name.
    assert metadata([("IMG_2.0.jpg", PNG), ("IMG_2.0.json", b'{"x":0}'), ("a.jpg", PNG)]) == {
        "IMG_2.0.jpg": ("IMG_2.0", {"path": "IMG_2.0.jpg", "x": 0}),
        "a.jpg": ("a", {"path": "a.jpg"}),
    }
    # 3: two images of one sample share its metadata.
    assert metadata([("0001.left.png", PNG), ("0001.right.png", PNG), ("0001.json", b'{"x":1}')]) == {
        "0001.left.png": ("0001.left", {"path": "0001.left.png", "x": 1}),
        "0001.right.png": ("0001.right", {"path": "0001.right.png", "x": 1}),
    }
    # 4: the members of one sample are not adjacent.
    apart = [("0.jpg", PNG), ("1.jpg", PNG), ("0.json", b'{"x":0}'), ("1.json", b'{"x":1}')]
    assert {name: found["x"] for name, (_, found) in metadata(apart).items()} == {"0.jpg": 0, "1.jpg": 1}
    # 5: a hard link, as tar writes for equal inodes.
    linked = metadata([("0.jpg", PNG)], one=member("1.jpg", link="0.jpg"))
    assert [*linked] == ["0.jpg", "1.jpg"]


def test_the_only_text_of_the_only_image_is_its_caption(tmp_path: Path) -> None:
    (image, _) = read(write_tar(tmp_path / "x.tar", [("0001.input.jpg", PNG), ("0001.outputs.txt", b"a cat")]))
    assert (image.id, image.caption) == ("0001.input", "a cat")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_compressed_tars_with_links_and_long_names(tmp_path: Path, mode: str) -> None:
    long = "f/" * 60 + "n" * 120
    files = [(f"./{long}.png", PNG), ("z.png", PNG), (f"{long}.json", b'{"x":1}'), ("._z.png", b"\0")]
    links = [
        member("hard.png", link="z.png"),
        member("soft.png", link="z.png", kind=tarfile.SYMTYPE),
        member("away.png", link="../secret.png", kind=tarfile.SYMTYPE),
        member("loop.png", link="loop.png", kind=tarfile.SYMTYPE),
        member("pipe.png", link="", kind=tarfile.FIFOTYPE),
    ]
    path = write_tar(tmp_path / ("x.tar" + mode[1:].replace(":", ".")), files, links, mode)
    found = read(path)
    assert len(found) == len(files) + len(links)
    images = added(found)
    assert [*images] == [f"{long}.png", "z.png", "hard.png", "soft.png"]
    assert all(one.data == PNG for one in images.values())
    assert images[f"{long}.png"].id == item_id(long)
    assert images[f"{long}.png"].metadata["x"] == 1
    assert [*faults(found)] == ["away.png", "loop.png"]
    assert skips(found) == {Skip.SYSTEM: 1, Skip.SIDECAR: 1, Skip.OTHER: 1}


def test_equal_stems_have_ids_of_their_own(tmp_path: Path) -> None:
    found = read(write_tar(tmp_path / "x.tar", [("1.jpg", PNG), ("1.png", PNG), ("1.cls", b"3")]))
    assert [one.id for one in found[:2]] == ["1", "1.png"]
    assert found[2].skip is Skip.OTHER


@pytest.mark.parametrize("damage", ["joined", "header", "cut", "cut at a member", "no tar"])
def test_damaged_tars_stop_the_import(tmp_path: Path, damage: str) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{at}.png", PNG) for at in range(4)])
    data = path.read_bytes()
    second = data.index(b"1.png")
    changed = {
        "joined": data + data,
        "header": data[:second] + b"\xff" * 512 + data[second + 512 :],
        "cut": data[: second + 600],
        "cut at a member": data[:second],
        "no tar": b"x" * 2048,
    }
    path.write_bytes(changed[damage])
    with pytest.raises(UnreadableSource):
        read(path)
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("a.png", PNG)
    (tmp_path / "y.zip").write_bytes((tmp_path / "y.zip").read_bytes()[:-10])
    with pytest.raises(UnreadableSource):
        read(tmp_path / "y.zip")


def test_a_gzip_that_is_cut_short_stops_the_import(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tgz", [("0.png", PNG), ("1.png", zlib.compress(PNG))], mode="w:gz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UnreadableSource):
        read(path)


def test_an_id_file_names_the_item(tmp_path: Path) -> None:
    files = [
        ("0.png", PNG),
        ("0.json", json.dumps({"a": 1}).encode()),
        ("0.id", b"v1.2:x"),
        ("1.png", PNG),
        ("1.id", b"/"),
    ]
    first, *_, second, _ = read(write_tar(tmp_path / "x.tar", files))
    assert (first.id, first.metadata) == ("v1.2:x", {"a": 1})
    assert second.fault is not None
    assert io.BytesIO(first.data).read(4) == b"\x89PNG"
