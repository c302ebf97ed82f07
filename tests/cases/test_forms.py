"""Multipart forms as browsers and HTTP clients write them: no label changes, and nothing is lost."""

import string
from collections.abc import Callable
from urllib.parse import quote

import numpy as np
import pytest
from starlette.requests import Request

from app.api.forms import Form, read_form
from app.api.routers.fewshot_bodies import _label
from app.api.strict_json import parse_json
from app.domain import Limits
from app.errors import Invalid, Malformed, ServiceError

pytestmark = pytest.mark.anyio
Random = np.random.Generator
FILES = {"support", "support:", "sketch", "image"}
TEXTS: dict[str, tuple[str, ...]] = {"text": (), "k": (), "gallery": ()}
LETTERS = string.ascii_letters + "猫éß☂️ 火-.,!?&=()[]{}'`~^%#@*<>|" + '";\\/:'


async def form_of(body: bytes, boundary: str = "x") -> Form:
    sent = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, object]:
        return sent.pop(0)

    headers = [(b"content-type", f"multipart/form-data; boundary={boundary}".encode())]
    return await read_form(Request({"type": "http", "headers": headers}, receive), Limits(), FILES, TEXTS)


def part(disposition: str, content: bytes = b"data") -> bytes:
    return b"--x\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


END = b"--x--\r\n"


def aiohttp(name: str) -> str:
    """As aiohttp's `content_disposition_header` writes a name: a quoted string, or the extended form."""
    if not name.isascii() or not name.isprintable():
        return f"form-data; name*=utf-8''{quote(name, '')}; filename=\"{quote('猫.png', '')}\""
    escaped = "".join(f"\\{letter}" if letter in ' "\\' else letter for letter in name)
    return f'form-data; name="{escaped}"; filename="a.png"'


def browser(name: str) -> str:
    return 'form-data; name="{}"; filename="a.png"'.format(name.replace('"', "%22"))


def httpx(name: str) -> str:
    return 'form-data; name="{}"; filename="a.png"'.format(name.replace("\\", "\\\\").replace('"', "%22"))


def curl(name: str) -> str:
    return 'form-data; name="{}"; filename="a.png"'.format(name.replace("\\", "\\\\").replace('"', '\\"'))


CLIENTS: dict[str, Callable[[str], str]] = {"aiohttp": aiohttp, "browser": browser, "httpx": httpx, "curl": curl}
LABELS = ["猫", "big cat", 'a "b" c', "a;b", "100%", "a\\b", "c:\\d e", "x=y", "naïve café", "'quoted'", "a, b", "☂️"]


@pytest.mark.parametrize("client", CLIENTS)
async def test_11_labels_arrive_as_they_were_sent(random: Random, client: str) -> None:
    labels = [
        *LABELS,
        *("".join(random.choice(list(LETTERS), int(random.integers(1, 12)))).strip() or "a" for _ in range(20)),
    ]
    for label in labels:
        # A client percent-encodes the label, as the guide says; without that, labels without a percent sign work.
        plain = label if "%" not in label else quote(label, "")
        if client == "browser" and ("\\" in label or label.endswith("\\")):
            plain = quote(label, "")  # browsers leave backslashes as they are
        form = await form_of(part(CLIENTS[client](f"support:{plain}")) + END)
        ((name, _),) = form.files
        assert _label(name.removeprefix("support:")) == label
        assert name.startswith("support:")


async def test_11_a_percent_sign_in_the_extended_form_stays(random: Random) -> None:
    label = f"{int(random.integers(100))}%20 猫"
    form = await form_of(part(f"form-data; name*=utf-8''{quote('support:' + label, '')}; filename=\"a\"") + END)
    assert _label(form.files[0][0].removeprefix("support:")) == label


@pytest.mark.parametrize(
    "disposition",
    ["form-data; name=\"sketch\"; filename*=utf-8''%E7%8C%AB.png", "form-data; filename*=UTF-8'en'a.png; name=sketch"],
)
async def test_11_a_file_with_an_extended_name_alone_is_a_file(disposition: str) -> None:
    form = await form_of(part(disposition) + END)
    assert [(name, image.data) for name, image in form.files] == [("sketch", b"data")]


@pytest.mark.parametrize(
    "disposition",
    ["form-data", "form-data; name*=latin-1''a; filename=a", 'form-data; name="support:a\\"; filename="a"', ""],
)
async def test_11_a_name_that_cannot_be_read_names_the_header(disposition: str) -> None:
    with pytest.raises(Malformed, match="Content-Disposition"):
        await form_of(part(disposition) + END)


async def test_12_a_form_without_its_end_is_refused(random: Random) -> None:
    body = b"".join(
        part(f'form-data; name="image"; filename="{at}"', random.bytes(50).hex().encode()) for at in range(3)
    )
    assert len((await form_of(body + END)).files) == 3
    for cut in (body, body[:-2], body + b"--x", body + b"--x\r\n", body[: int(random.integers(1, len(body)))]):
        with pytest.raises(Malformed):
            await form_of(cut)
    with pytest.raises(Malformed):
        await form_of((body + END).replace(b"\r\n", b"\n"))


async def test_27_fields_that_were_left_empty_are_absent(random: Random) -> None:
    empty = [
        part('form-data; name="sketch"; filename=""\r\nContent-Type: application/octet-stream', b""),
        part('form-data; name="image"', b""),
        part('form-data; name="text"', b"cat"),
        part('form-data; name="k"', b""),
        part('form-data; name="gallery"', b""),
    ]
    form = await form_of(b"".join(empty[at] for at in random.permutation(len(empty))) + END)
    assert form.files == []
    assert form.fields(json=["k"]) == {"text": "cat"}


@pytest.mark.parametrize(
    ("disposition", "content", "problem"),
    [
        ('form-data; name="sketch"', b"data", "must be a file"),
        ('form-data; name="text"; filename="a"', b"data", "is text, not a file"),
    ],
)
async def test_27_other_mix_ups_are_named(disposition: str, content: bytes, problem: str) -> None:
    with pytest.raises(Invalid, match=problem):
        await form_of(part(disposition, content) + END)


async def test_27_a_file_that_is_empty_is_a_file() -> None:
    form = await form_of(part('form-data; name="sketch"; filename="a.png"', b"") + END)
    assert len(form.files) == 1


async def test_json_may_begin_with_a_byte_order_mark(random: Random) -> None:
    value = int(random.integers(1 << 40))
    assert parse_json(b'\xef\xbb\xbf{"a": %d}' % value) == {"a": value}
    assert parse_json("\ufeff[1]") == [1]


async def test_damaged_forms_are_refused_or_read(random: Random) -> None:
    whole = part(aiohttp("support:猫 a"), b"1") + part('form-data; name="text"', b"cat") + END
    for _ in range(50):
        data = bytearray(whole)
        for place in random.integers(0, len(data), int(random.integers(1, 4))).tolist():
            data[place] ^= int(random.integers(1, 256))
        try:
            assert len((await form_of(bytes(data))).files) <= 2
        except ServiceError as err:
            assert err.status in (400, 415, 422)  # noqa: PT017 - a result is as good
