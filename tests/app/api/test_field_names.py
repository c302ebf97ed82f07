"""Messages about fields name what was wrong and what is right, and nothing of the program."""

import re

import httpx
import pytest

from tests.app.api.images import BAR, png

pytestmark = pytest.mark.anyio
FILE, TEXT = "file", "text"
INTERNAL = re.compile(r"function-|constrained|instance of|Value error|\bmodel\b|\[_|pydantic|Tag|form of")
EPISODES, ITEMS = "/fewshot/episodes", "/galleries/default/items"


def part(name: str, content: bytes = b"a", *, file_name: str | None = None) -> tuple[str, tuple[str | None, bytes]]:
    return name, (file_name, content)


def empty(name: str) -> tuple[str, tuple[str, bytes]]:
    """A file field of an HTML form that was left empty."""
    return name, ("", b"")


@pytest.mark.parametrize(
    ("path", "field", "kind", "words"),
    [
        ("/retrieve", "sketches", FILE, ["'sketch'"]),
        ("/retrieve", "photo", FILE, ["image and sketch as files"]),
        ("/retrieve", "querry", TEXT, ["text_weight"]),
        ("/retrieve", "texts", TEXT, ["'text'"]),
        ("/retrieve", "sketch", TEXT, ["must be a file"]),
        ("/retrieve", "text", FILE, ["is text"]),
        ("/embed", "images", FILE, ["'image'"]),
        ("/embed", "text", TEXT, ["'texts'"]),
        ("/segment", "Image", FILE, ["'image'"]),
        ("/segment", "class", TEXT, ["'classes'"]),
        (ITEMS, "images", FILE, ["'image'"]),
        (ITEMS, "metadata", TEXT, ["JSON", "'items'"]),
        (EPISODES, "queries", FILE, ["'query'"]),
        (EPISODES, "method", TEXT, ["JSON", "'options'"]),
        (EPISODES, "supports", FILE, ["'support'", "support:<label>"]),
        (EPISODES, "label", TEXT, ["options"]),
        ("/fewshot/episodes/ep_" + "0" * 24 + "/classify", "queries", FILE, ["'query'"]),
    ],
)
async def test_a_wrong_name_in_a_form_names_the_right_one(
    client: httpx.AsyncClient, path: str, field: str, kind: str, words: list[str]
) -> None:
    files = [part("image" if path == ITEMS else field, png(), file_name="a.png"), part(field)]
    files = [part(field, png(), file_name="a.png")] if kind == FILE else files[1:]
    answer = await client.post(path, files=files)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    for word in words:
        assert word in error["message"], error
        assert word in answer.json()["detail"]


async def test_one_image_to_classify_may_be_called_so(client: httpx.AsyncClient) -> None:
    ways = [{"label": "bar", "support": [BAR]}, {"label": "disc", "support": [{"base64": _base64()}]}]
    episode = (await client.post(EPISODES, json={"ways": ways})).json()["id"]
    files = [part("image", png(), file_name="a.png")]
    answer = await client.post(f"{EPISODES}/{episode}/classify", files=files)
    assert [one["label"] for one in answer.json()["predictions"]] == ["disc"]


def _base64() -> str:
    import base64

    return base64.b64encode(png()).decode()


@pytest.mark.parametrize(
    ("path", "files"),
    [
        pytest.param("/retrieve", [part("text"), empty("sketch")], id="an empty file field"),
        pytest.param("/retrieve", [part("text"), part("sketch", b"")], id="what Swagger UI sends"),
        pytest.param("/retrieve", [part("text"), part("k", b""), part("filter", b""), part("like", b"")], id="scalars"),
        pytest.param("/retrieve", [part("text", b""), part("image", png(), file_name="a.png")], id="text"),
        pytest.param(
            "/segment", [part("image", png(), file_name="a"), part("classes"), part("classes", b"")], id="list"
        ),
        pytest.param(ITEMS, [part("image", png(), file_name="a"), empty("image"), part("items", b"")], id="of several"),
    ],
)
async def test_what_a_form_left_empty_is_absent(
    client: httpx.AsyncClient, path: str, files: list[tuple[str, tuple[str | None, bytes]]]
) -> None:
    # httpx drops empty file names, which browsers send.
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (name.encode(), b"" if file is None else b'; filename="%b"' % file.encode(), content)
        for name, (file, content) in files
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = await client.post(path, content=body + b"--x--\r\n", headers=headers)
    assert answer.status_code == 200, answer.text


async def test_an_empty_form_says_what_is_missing(client: httpx.AsyncClient) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="sketch"; filename=""\r\n\r\n\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = await client.post("/retrieve", content=body, headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (422, "Send at least one of sketch, image, text and like.")
    answer = await client.post("/retrieve", content=body.replace(b"\r\n\r\n\r\n", b"\r\n\r\nX\r\n"), headers=headers)
    assert answer.json()["code"] == "undecodable-image"  # a file without a name is a file


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/segment", {"image": BAR, "classes": ["a\n"]}, "classes[0]"),
        ("/segment", {"image": BAR, "classes": [""]}, "classes[0]"),
        ("/segment", {"image": BAR, "classes": [3]}, "classes[0]"),
        ("/segment", {"image": BAR, "classes": [{"name": "a\x7f"}]}, "classes[0].name"),
        ("/segment", {"image": BAR, "classes": [{"names": "a"}]}, "classes[0].name"),
        ("/segment", {"image": {"strokes": [[[1], [1]]], "width": 0, "height": 1}, "classes": ["a"]}, "image.width"),
        ("/segment", {"image": {"base64": 3}, "classes": ["a"]}, "image.base64"),
        ("/segment", {"image": {"item": "a"}, "classes": ["a"]}, "image.item"),
        ("/segment", {"image": "a", "classes": ["a"]}, "image"),
        ("/retrieve", [], ""),
        ("/retrieve", {"sketch": {"strokes": [[1, 2]], "width": 9, "height": 9}}, "sketch.strokes[0][0]"),
        ("/retrieve", {"text": "a", "gallery": "A"}, "gallery"),
        ("/retrieve", {"text": "a", "like": 3}, "like"),
        ("/retrieve", {"text": "a", "filter": 3}, "filter"),
        (EPISODES, {"ways": [{"label": "a\x00", "support": [BAR]}]}, "ways[0].label"),
        (EPISODES, {"ways": [{"label": "a\x01", "support": [BAR]}, {"label": "b", "support": [BAR]}]}, "ways[0].label"),
        (ITEMS, [{"image": BAR, "metadata": []}], "[0].metadata"),
        (ITEMS, {"image": BAR}, ""),
        (ITEMS, [3], "[0]"),
    ],
)
async def test_no_message_names_the_program(client: httpx.AsyncClient, path: str, body: object, field: str) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["errors"][0]["field"] == field
    for text in (problem["detail"], *(str(error) for error in problem["errors"])):
        assert not INTERNAL.search(text), text
