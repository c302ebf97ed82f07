"""Forms: text is UTF-8 or refused, never misread; parts are bounded."""

import httpx
import pytest

from tests.app.api.images import png

pytestmark = pytest.mark.anyio


def part(disposition: bytes, content: bytes, *, headers: bytes = b"") -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + disposition + b"\r\n" + headers + b"\r\n" + content + b"\r\n"


async def send(client: httpx.AsyncClient, *parts: bytes, end: bytes = b"--x--\r\n", kind: str = "") -> httpx.Response:
    headers = {"Content-Type": f"multipart/form-data; boundary=x{kind}"}
    return await client.post("/retrieve", content=b"".join(parts) + end, headers=headers)


@pytest.mark.parametrize("kind", ["", "; charset=utf-8", "; charset=UTF8", "; charset=us-ascii"])
async def test_text_is_read_as_utf_8(client: httpx.AsyncClient, kind: str) -> None:
    answer = await send(client, part(b'name="text"', "Häuser 家".encode()), kind=kind)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "bad",
    [
        part(b'name="text"', b"H\xe4user"),
        part(b'name="te\xe4xt"', b"a"),
        part(b'name="sketch"; filename="\xff.png"', b"a"),
        part(b'name="text"', b"cut off \xe5\xae"),
    ],
    ids=["value", "name", "file-name", "cut"],
)
async def test_other_bytes_are_400(client: httpx.AsyncClient, bad: bytes) -> None:
    answer = await send(client, bad)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert "UTF-8" in answer.json()["detail"]


async def test_another_character_set_is_415(client: httpx.AsyncClient) -> None:
    text = part(b'name="text"', b"a", headers=b"Content-Type: text/plain; charset=latin-1\r\n")
    for answer in (
        await send(client, text),
        await send(client, part(b'name="text"', b"a"), kind="; charset=iso-8859-1"),
        await send(client, part(b'name="text"', b"a"), kind="; charset=nonsense"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media")


async def test_nul_is_422(client: httpx.AsyncClient) -> None:
    for bad in (
        part(b'name="text"', b"a\0b"),
        part(b'name="te\0xt"', b"a"),
        part(b'name="filter"', b'{"a": "\\u0000"}'),
    ):
        assert (await send(client, bad)).status_code in (400, 422)


@pytest.mark.parametrize("end", [b"", b"--x", b"--x\r\n"])
async def test_a_form_that_is_cut_off_is_400(client: httpx.AsyncClient, end: bytes) -> None:
    assert (await send(client, part(b'name="text"', b"a"), end=end)).status_code == 400


async def test_nul_in_any_stored_text_is_422(client: httpx.AsyncClient) -> None:
    """Both databases: it is refused before either is reached."""
    image = {"svg": "<svg/>"}
    for method, url, body in (
        ("PUT", "/galleries/g", {"description": "a\0"}),
        ("PUT", "/galleries/default/items/a", {"image": image, "caption": "a\0"}),
        ("PUT", "/galleries/default/items/a", {"image": image, "metadata": {"a": ["\0"]}}),
        ("PATCH", "/galleries/default/items/a", {"metadata": {"\0": 1}}),
        ("POST", "/galleries/default/items", [{"image": image, "caption": "\0"}]),
        ("PUT", "/class-sets/a", {"classes": [{"name": "a", "templates": ["a {}\0"]}]}),
        ("POST", "/fewshot/episodes", {"name": "\0", "ways": []}),
    ):
        answer = await client.request(method, url, json=body)
        assert answer.status_code == 422, answer.text
        assert "NUL" in answer.json()["detail"]


@pytest.mark.parametrize("empty", [b'name="text"', b'name="sketch"; filename=""'], ids=["text", "file"])
async def test_parts_that_count_as_absent_are_bounded_too(client: httpx.AsyncClient, empty: bytes) -> None:
    answer = await send(client, *[part(empty, b"")] * 4096, part(b'name="text"', b"a"))
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert "2048 files" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "name", "text"),
    [("/retrieve", "filter", "kind=emoji"), ("/retrieve", "like", "1f431"), ("/segment", "classes", "{mailbox")],
)
async def test_json_that_cannot_be_read_is_named_with_its_field(
    client: httpx.AsyncClient, path: str, name: str, text: str
) -> None:
    file = {"image": ("a.png", png())}
    answer = await client.post(path, files=file, data={name: text})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert answer.json()["detail"].startswith(f"The JSON of the field '{name}' cannot be read: ")
    listed = await client.get("/galleries/default/items", params={"filter": text})
    assert listed.json()["detail"].startswith("The JSON of the parameter 'filter' cannot be read: ")
