"""Commands that ask a running service, on the shipped bundle and a small demo gallery."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from rich.console import Console
from typer.testing import CliRunner, Result

from app.api.auth import Scope, new_key
from app.cli.gallery import fill
from app.cli.main import app, progress
from app.domain import HOUSE
from app.imaging.demo import demo_images
from tests.app.test_server import COMMAND, started
from vermouth_client import Client
from vermouth_client.masks import contact_sheet

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("here")]
ROOT = Path(__file__).parents[3]
KEY, ENTRY = new_key("tests", [Scope.READ, Scope.WRITE, Scope.METRICS])
ANIMALS = {"cat": ["1f431", "1f408"], "fish": ["1f41f", "1f420"], "house": ["1f3e0", "1f3e1"]}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="3"/></svg>'


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def url(data_dir: Path) -> Iterator[str]:
    """A server with keys, and the URL at which it serves a gallery of some emoji."""
    settings = {"BUNDLE": str(ROOT / "weights/mini"), "API_KEYS": ENTRY}
    server = started("", data_dir, COMMAND, limit_s=900, **settings)
    with server as process, process.connect() as http:
        process.wait_for("ready")
        http.headers["X-API-Key"] = KEY
        wanted = {"1f638", "2b50", *(one for ids in ANIMALS.values() for one in ids)}
        images = [image for at, image in enumerate(demo_images()) if image.id in wanted or at % 60 == 0]
        with Client(str(http.base_url), key=KEY) as client, progress(Console(quiet=True)) as bar:
            assert fill(client, "default", images, 64, bar) == (len(images), [])
        yield str(http.base_url)


@pytest.fixture
def here(url: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with images and drawings, and the service in the environment."""
    emoji = {image.id: image for image in demo_images()}
    for label, ids in ANIMALS.items():
        (tmp_path / "pets" / label).mkdir(parents=True)
        for one in ids:
            (tmp_path / "pets" / label / f"{one}.png").write_bytes(emoji[one].render())
    (tmp_path / "house.json").write_text(json.dumps(HOUSE))
    (tmp_path / "lines.ndjson").write_text('{"word":"line","drawing":[[[0,255],[0,255]]]}\n[[[0,9,9],[0,0,9]]]\n')
    (tmp_path / "circle.svg").write_text(SVG)
    shutil.copytree(tmp_path / "pets", tmp_path / "photos")
    for name, one in (("cat", "1f638"), ("bird", "2b50")):
        (tmp_path / "photos" / f"{name}.png").write_bytes(emoji[one].render())
    table = "path;sku;year;caption\nhouse/1f3e0.png;h-1;2020;a house\nfish/1f41f.png;f-1;2023;a fish\n"
    (tmp_path / "photos" / "table.csv").write_text(table)
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "data").symlink_to(data_dir)
    (tmp_path / "scene.png").symlink_to(ROOT / "docs/pictures/scene.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.png").write_bytes(emoji["1f431"].render())
    (tmp_path / "mixed" / "b.png").write_bytes(b"no image")
    (tmp_path / "mixed" / "c.svg").write_text(SVG)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("VERMOUTH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VERMOUTH_URL", url)
    monkeypatch.setenv("VERMOUTH_API_KEY", KEY)


def run(*arguments: str, code: int = 0, env: Mapping[str, str] | None = None) -> Result:
    done = CliRunner().invoke(app, arguments, env=env)
    assert isinstance(done.exception, SystemExit | None), done.exception
    assert done.exit_code == code, done.output
    return done


def lines(*arguments: str) -> list[list[str]]:
    """What a command prints for a program: fields between tabs."""
    return [line.split("\t") for line in run(*arguments).stdout.splitlines()]


def size_of(file: str) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def objects(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*arguments, "--json").stdout.splitlines()]


def test_a_drawing_finds_a_house_in_every_form_of_output() -> None:
    found = lines("retrieve", "house.json", "-k", "2")
    assert [row[:2] for row in found] == [["house.json", "1"], ["house.json", "2"]]
    assert {row[3] for row in found} <= set(ANIMALS["house"])
    assert "name=" in found[0][4]
    as_objects = objects("retrieve", "house.json", "-k", "2")
    assert [one["id"] for one in as_objects] == [row[3] for row in found]
    table = list(csv.DictReader(io.StringIO(run("retrieve", "house.json", "-k", "2", "--csv").stdout)))
    assert [json.loads(row["metadata"]) for row in table] == [one["metadata"] for one in as_objects]
    assert [float(row["score"]) for row in table] == [one["score"] for one in as_objects]


def test_words_items_and_liked_items_are_searched_for() -> None:
    assert lines("retrieve", "--text", "a fish", "-k", "1")[0][3] in ANIMALS["fish"]
    assert lines("retrieve", "item:default/1f431", "--image", "-k", "1")[0][3] == "1f431"
    liked = [row[3] for row in lines("retrieve", "--like", "1f431", "--unlike", "1f41f", "-k", "3")]
    assert "1f408" in liked
    assert "1f41f" not in liked
    named = '{"name": "cat face"}'
    assert [row[3] for row in lines("retrieve", "--text", "a fish", "--filter", named)] == ["1f431"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_drawings_are_read_in_every_encoding_and_from_stdin(encoding: str) -> None:
    house, line = json.dumps(HOUSE), json.dumps(HOUSE) + "\r\n"
    Path("encoded.json").write_bytes(house.encode(encoding))
    Path("encoded.ndjson").write_bytes((2 * line).encode(encoding))
    expected = lines("embed", "house.json", "--json", "--reproducible")[0][0].removeprefix('{"source": "house.json", ')
    for argument, given, names in (
        ("encoded.json", "", ["encoded.json"]),
        ("encoded.ndjson", "", ["encoded.ndjson:1", "encoded.ndjson:2"]),
        ("-", house, ["stdin"]),
        ("-", 2 * line, ["stdin:1", "stdin:2"]),
    ):
        done = CliRunner().invoke(app, ["embed", argument, "--json", "--reproducible"], input=given.encode(encoding))
        assert done.stdout.splitlines() == [f'{{"source": "{name}", {expected}' for name in names]
    for nothing in ('{"a": 1}', "[[1", '{"drawing": []}\n{"drawing": 1}'):
        done = CliRunner().invoke(app, ["embed", "-"], input=nothing.encode(encoding))
        assert done.stderr.startswith("error: stdin holds no strokes: ")


def test_svg_files_are_read_in_the_encoding_that_they_declare() -> None:
    declared = "<?xml version='1.0' encoding='windows-1252'?>\n" + SVG.replace(
        "><circle", "><title>Häuser</title><circle"
    )
    Path("latin.svg").write_bytes(declared.encode("cp1252"))
    Path("wide.svg").write_bytes(SVG.encode("utf-16"))
    Path("broken.svg").write_bytes(declared.replace("windows-1252", "utf-8").encode("cp1252"))
    sources = ("circle.svg", "latin.svg", "wide.svg")
    assert len({str(one["vector"]) for one in objects("embed", *sources, "--reproducible")}) == 1
    for one in sources:
        done = CliRunner().invoke(app, ["embed", "-", "--json", "--reproducible"], input=Path(one).read_bytes())
        assert json.loads(done.stdout)["vector"] == objects("embed", one, "--reproducible")[0]["vector"]
    refused = run("embed", "circle.svg", "broken.svg", code=1).stderr
    assert "refused broken.svg: The SVG is not in utf-8: save it as UTF-8, or name its encoding in" in refused
    run("segment", "wide.svg", "-c", "cat", "--coco", "wide.json")
    assert json.loads(Path("wide.json").read_text())["images"][0]["file_name"] == "wide.svg"
    made = objects("episode", "create", "a=wide.svg", "b=latin.svg")
    run("episode", "delete", made[0]["id"])
    error = run("episode", "create", "a=wide.svg", "b=broken.svg", code=1).stderr
    assert error.startswith("error: broken.svg: The SVG is not in utf-8")


def test_results_are_drawn_on_sheets() -> None:
    run("retrieve", "house.json", "--sheet", "found.png")
    assert size_of("found.png")[0] == 5 * 160
    run("retrieve", "lines.ndjson", "circle.svg", "-k", "2", "--sheet", "sheets")
    assert sorted(file.name for file in Path("sheets").iterdir()) == [
        "circle.svg.png",
        "lines.ndjson_1.png",
        "lines.ndjson_2.png",
    ]


def test_a_sheet_titles_results_by_name_or_file(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def noted(images: Iterable[bytes], captions: Sequence[str], *, size: int) -> Image.Image:
        drawn[:] = [caption.partition(" ")[2] for caption in captions]
        return contact_sheet(images, captions, size=size)

    monkeypatch.setattr("vermouth_client.models.contact_sheet", noted)
    run("retrieve", "item:default/1f431", "--image", "-k", "1", "--sheet", "x.png")
    assert drawn == ["cat face"]
    Path("pets/fish/рыба.png").write_bytes(Path("pets/fish/1f41f.png").read_bytes())
    run("gallery", "import", "pets", "--gallery", "titled")
    run("retrieve", "--text", "a fish", "-g", "titled", "--sheet", "x.png")
    ids = [row[3] for row in lines("retrieve", "--text", "a fish", "-g", "titled")]
    assert {"1f431", "1f41f", "1f3e0"} <= {*drawn}
    assert len({*drawn}) == 7
    assert {*drawn} & {*ids} == {one for one in ids if one.startswith("fish_.png-")}  # no letter that the font lacks
    run("gallery", "delete", "titled", "--yes")


def test_a_folder_answers_for_each_image_and_reports_the_others() -> None:
    done = run("retrieve", "mixed", "-k", "1", "--image", code=1)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["mixed/a.png", "mixed/c.svg"]
    assert "refused mixed/b.png: " in done.stderr
    assert done.stderr.splitlines()[-1] == "error: 1 of 3 images were refused, as listed above."


@pytest.mark.parametrize("command", ["retrieve --image -k 1", "segment -c cat -c fish", "embed", "classify pets"])
def test_an_unsupported_file_or_a_missing_item_does_not_end_a_batch(command: str) -> None:
    Path("mixed/a.tif").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    if command == "classify pets":
        run("episode", "create", "pets", "--name", "pets")
    done = run(*command.split(), "item:default/none", "item:none/x", "mixed/a.tif", "mixed/a.png", code=1)
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == {"mixed/a.png"}
    assert "refused item:default/none: There is no item 'none' in gallery 'default'.\n" in done.stderr
    assert "refused item:none/x: There is no gallery 'none'.\n" in done.stderr
    assert "refused mixed/a.tif: Images must be PNG" in done.stderr
    assert done.stderr.endswith("error: 3 of 4 images were refused, as listed above.\n")
    assert run(*command.split(), "mixed/a.tif", code=1).stderr.startswith("error: mixed/a.tif: Images must be PNG")
    if command == "classify pets":
        run("episode", "delete", "pets")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("retrieve --gallery none", "There is no gallery 'none'."),
        ("retrieve --like none", "There is no item 'none' in gallery 'default'."),
        ("segment --class-set none", "There is no class set 'none'."),
    ],
)
def test_what_every_source_lacks_ends_a_batch_at_once(options: str, error: str) -> None:
    done = run(*options.split(), "item:default/1f431", "mixed/a.png", "mixed/c.svg", code=1)
    assert done.stdout == ""
    assert "refused" not in done.stderr
    assert done.stderr.endswith(f"error: {error}\n")


def test_masks_are_lines_images_and_a_coco_document() -> None:
    scene = str(ROOT / "docs/pictures/scene.png")
    written = ("--overlay", "overlay.png", "--labels", "labels.png", "--coco", "coco.json")
    found = objects("segment", scene, "-c", "mailbox", "-c", "notebook=notepad,pad", *written)
    assert {one["class"] for one in found} <= {"mailbox", "notebook"}
    assert found
    assert size_of("labels.png") == size_of(scene)
    assert size_of("overlay.png")[0] >= size_of(scene)[0]
    coco = COCO("coco.json")
    assert coco.imgs[1]["file_name"] == "scene.png"
    assert [one["area"] for one in coco.anns.values()] == [one["area"] for one in found]
    labels = np.asarray(Image.open("labels.png"))
    assert sum(one["area"] for one in coco.anns.values()) == (labels > 0).sum()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["cat, fish"], ["cat", "fish"]),
        (["cat", "fish"], ["cat", "fish"]),
        (["cat=kitten,puss"], ["cat"]),
        (["cat, fish", "bird"], ["cat, fish", "bird"]),  # as repeated fields of a form
    ],
)
def test_one_class_option_lists_names_as_the_field_of_a_form(options: list[str], names: list[str]) -> None:
    run("segment", "circle.svg", *(word for one in options for word in ("-c", one)), "--coco", "coco.json")
    assert [one["name"] for one in json.loads(Path("coco.json").read_text())["categories"]] == names


def test_each_source_has_a_file_of_its_own(tmp_path: Path) -> None:
    names = ("a/b_1.png", "a_b/1.png", "a/B_1.PNG", "a/b_1.png-2")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy("pets/cat/1f431.png", name)
    written = ("--overlay", "out", "--labels", "out", "--coco", "out")
    run(
        "segment", *names, "../" + str(Path("a_b/1.png").absolute().relative_to(tmp_path.parent)), "-c", "cat", *written
    )
    plain = ("a_b_1.png", "a_b_1.png-2", "a_B_1.PNG-3", "a_b_1.png-2-2", f"{tmp_path.name}_a_b_1.png")
    assert {one.name for one in Path("out").iterdir()} == {
        f"{one}{suffix}" for one in plain for suffix in (".png", ".labels.png", ".json")
    }
    assert json.loads(Path("out/a_B_1.PNG-3.json").read_text())["images"][0]["file_name"] == "B_1.PNG"


def test_what_is_not_found_is_named_beside_the_lines() -> None:
    scene = str(ROOT / "docs/pictures/scene.png")
    done = run("segment", scene, "-c", "mailbox", "-c", "zeppelin", "--threshold", "0.999")
    found = {line.split("\t")[1] for line in done.stdout.splitlines()}
    absent = done.stderr.strip().removeprefix("not found: ").split(", ")
    assert {*absent} == {"mailbox", "zeppelin"} - found
    assert absent
    assert run("retrieve", "--text", "a fish").stderr == ""  # no bar of no images


def test_an_image_without_any_class_has_an_object_too() -> None:
    nothing = ("segment", "circle.svg", "mixed/a.png", "-c", "zeppelin", "--threshold", "1")
    found = objects(*nothing)
    assert [(one["source"], one["class"], one["area"]) for one in found] == [
        ("circle.svg", None, 0),
        ("mixed/a.png", None, 0),
    ]
    assert lines(*nothing) == []


def test_class_sets_come_and_go() -> None:
    run("classset", "put", "post", "mailbox", "notebook=notepad,pad")
    assert ["post", "1", "2"] in lines("classset", "list")
    assert objects("classset", "show", "post")[1]["synonyms"] == ["notepad", "pad"]
    assert lines("segment", str(ROOT / "docs/pictures/scene.png"), "--class-set", "post")
    run("classset", "delete", "post")
    assert "post" in run("classset", "show", "post", code=1).stderr


def test_classes_are_taught_from_a_folder_and_classify_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.episode.MAX_REQUEST_IMAGES", 4)  # so that examples come in two requests
    (made,) = objects("episode", "create", "pets", "--name", "pets", "--method", "ridge")
    assert made["examples"] == {"cat": 2, "fish": 2, "house": 2}
    found = lines("classify", "pets", "pets/cat", "item:default/1f638", "circle.svg")
    assert [row[1] for row in found[:3]] == ["cat", "cat", "cat"]
    (scores,) = objects("classify", "pets", "item:default/1f638", "--top", "2")
    assert len(scores["scores"]) == 2
    (added,) = objects("episode", "add", made["id"], "star=item:default/2b50")
    assert added["examples"] == {"cat": 2, "fish": 2, "house": 2, "star": 1}
    assert [row[0] for row in lines("episode", "list")] == [made["id"]]
    assert [row[0] for row in lines("episode", "show", "pets")] == ["cat", "fish", "house", "star"]
    run("episode", "delete", "pets")
    assert "There is no episode 'pets'" in run("classify", "pets", "circle.svg", code=1).stderr


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"no image", "The bytes are not an image."),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "The SVG needs a width"),
    ],
)
def test_a_refused_example_is_named(bad: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.episode.MAX_REQUEST_IMAGES", 4)  # the last example is not in the first request
    Path("pets/house/last.png").write_bytes(bad)
    before = lines("episode", "list")
    for sources in (["pets"], ["pets/cat", "pets/house"]):
        labelled = sources if len(sources) == 1 else [f"{Path(one).name}={one}" for one in sources]
        done = run("episode", "create", *labelled, code=1)
        assert f"refused pets/house/last.png: {reason}" in done.stderr
        assert "error: 1 of " in done.stderr.splitlines()[-1]
    assert lines("episode", "list") == before
    Path("pets/house/last.png").unlink()
    (made,) = objects("episode", "create", "pets")
    done = run("episode", "add", made["id"], "cat=pets/cat", "cat=item:default/none", code=1)
    assert "refused item:default/none: There is no item 'none' in gallery 'default'." in done.stderr
    run("episode", "delete", made["id"])


def test_vectors_are_printed_and_written() -> None:
    sources = ("circle.svg", "pets/cat", "--text", "a cat", "--reproducible")
    rows = objects("embed", *sources)
    assert [row["source"] for row in rows] == ["circle.svg", "pets/cat/1f408.png", "pets/cat/1f431.png", "a cat"]
    assert lines("embed", *sources, "--npy", "vectors") == [[row["source"]] for row in rows]
    vectors = np.load("vectors")
    np.testing.assert_allclose(vectors, [row["vector"] for row in rows], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-4)


def test_a_gallery_is_imported_shown_exported_and_deleted() -> None:
    assert "added" in run("gallery", "import", "pets", "--gallery", "pets").stdout
    assert ["pets", "6", ""] in lines("gallery", "list")
    assert json.loads(run("gallery", "show", "pets", "--json").stdout)["index"]["vectors"] == 6
    run("gallery", "export", "pets", "pets.tar")
    assert "6" in run("gallery", "import", "pets.tar", "--gallery", "copy").stdout
    run("gallery", "export", "pets", "pets.ndjson")
    assert len(Path("pets.ndjson").read_text().splitlines()) == 6
    assert "holds 6 items: pass --yes" in run("gallery", "delete", "pets", code=1).stderr
    run("gallery", "delete", "pets", "--yes")
    run("gallery", "delete", "copy", "--yes")
    assert "pets" not in run("gallery", "list").stdout


@pytest.mark.parametrize("answer", ["n\n", "\n"])
def test_a_gallery_is_left_where_its_deletion_is_not_confirmed(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.gallery.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    done = CliRunner().invoke(app, ["gallery", "delete", "default"], input=answer)
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, "error: Nothing was deleted.")
    assert "default" in run("gallery", "list").stdout


def test_status_names_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mini" in run("status").stdout
    assert json.loads(run("status", "--json").stdout)["status"] == "ready"
    monkeypatch.delenv("VERMOUTH_API_KEY")
    assert run("status", code=1).stderr.endswith("Set --key or VERMOUTH_API_KEY.\n")
    unknown = run("status", "--key", "wrong", code=1).stderr
    assert unknown.startswith("error: The service does not know this key. Correct --key or VERMOUTH_API_KEY")
    assert run("status", "--key", KEY).stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("retrieve none.png", "none.png does not exist."),
        ("retrieve broken.png", "broken.png: "),
        ("retrieve broken.json", "broken.json does not exist."),
        ("retrieve circle.svg --gallery none", "'none'"),
        ("retrieve circle.svg --gallery ../x", "gallery"),
        ("retrieve item:default", "write it as item:GALLERY/ID"),
        ("retrieve item:default/none", "none"),
        ("retrieve circle.svg -k 100000", "k"),
        ("retrieve circle.svg --sheet gone/x.png", "gone/x.png: No such file or directory"),
        ("retrieve --like none", "none"),
        ("segment circle.svg -c cat -c cat", "Class names must be unique."),
        ("segment circle.svg --class-set none", "none"),
        ("segment circle.svg -c cat --overlay gone/x.png", "gone/x.png: No such file or directory"),
        ("classify none circle.svg", "There is no episode 'none'"),
        ("embed circle.svg --npy gone/x", "gone/x: No such file or directory"),
        ("episode create pets/cat", "is no folder with a subfolder for each class"),
        ("episode create cat=pets/cat", "only 'cat' is given"),
        ("episode create cat=pets/cat dog=gone", "gone does not exist."),
        ("episode show none", "There is no episode 'none'"),
        ("gallery show none", "none"),
        ("gallery export none x.tar", "none"),
        ("gallery export default gone/x.tar", "There is no folder gone: create it"),
        ("gallery delete none", "none"),
        ("classset show none", "none"),
        ("classset put x cat cat", "Class names must be unique."),
        ("status --key wrong", "The service does not know this key. Correct --key or VERMOUTH_API_KEY"),
        ("status --url http://127.0.0.1:9", "Start it with `vermouth serve`"),
        ("status --url 127.0.0.1:8000", "is no URL of a service"),
        ("status --url http://127.0.0.1:nine", "is no URL of a service"),
        ("status --key clé", "copy it again"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(arguments: str, error: str) -> None:
    done = run(*arguments.split(), code=1)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert error in last


GUIDES = "command-line catalogue words classes production".split()


@pytest.mark.parametrize("page", ["quickstart", "metrics", *(f"guides/{one}" for one in GUIDES)])
def test_the_commands_of_a_page_run_as_they_stand(page: str, url: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ran = 0
    for line in (line for kind, block in blocks if kind == "sh" for line in block.splitlines()):
        words = shlex.split(line, comments=True)
        variables = dict(word.split("=", 1) for word in takewhile(re.compile("[A-Z_]+=").match, words))
        program, *arguments = words[len(variables) :] or [""]
        if program == "curl":
            local = line.replace("http://127.0.0.1:8000", url)
            subprocess.run(["bash", "-o", "pipefail", "-c", local], check=True, timeout=60)
        elif program == "vermouth" and arguments[0] != "serve" and arguments != ["gallery", "demo"]:
            run(*(arguments[: arguments.index(">")] if ">" in arguments else arguments), env=variables)
        ran += program in ("curl", "vermouth")
    assert ran
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block.replace("Client()", f"Client({url!r}, key={KEY!r})"), page, "exec"), {})
    for name in ("pets", "mine", "week"):
        CliRunner().invoke(app, ["episode", "delete", name])
