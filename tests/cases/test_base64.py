"""Base64 and data URIs as clients write them are read whole, or the first wrong character is named."""

import base64
import re
from collections.abc import Callable

import numpy as np
import pytest

from app.errors import Malformed
from app.imaging.sources import decode_base64
from tests.app.imaging.files import encoded

Random = np.random.Generator

PAYLOADS: dict[str, tuple[Callable[[str], str], str | None]] = {
    "plain": (lambda text: text, None),
    "no padding": (lambda text: text.rstrip("="), None),
    "line breaks": (lambda text: re.sub("(.{76})", r"\1\r\n", text), None),
    "URL-safe": (lambda text: text.translate(str.maketrans("+/", "-_")), None),
    "URL-safe without padding": (lambda text: text.translate(str.maketrans("+/", "-_")).rstrip("="), None),
    "charset": (lambda text: f"data:image/png;charset=utf-8;base64,{text}", None),
    "upper case": (lambda text: f"DATA:IMAGE/PNG;BASE64,{text}", None),
    "percent-encoded": (
        lambda text: "data:image/png;base64," + text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"), None,
    ),
    "another image type": (lambda text: f"data:image/jpeg;base64,{text}", None),
    "no type": (lambda text: f"data:;base64,{text}", None),
    "leading space": (lambda text: f" data:image/png;base64,{text}", "' ' as character 1"),
    "twice": (lambda text: f"data:image/png;base64,data:image/png;base64,{text}", "':' as character 5"),
    "b''": (lambda text: f"b'{text}'", "as character 2"),
    "quotes": (lambda text: f'"{text}"', "'\"' as character 1"),
    "a type that is no image": (lambda text: f"data:text/plain;base64,{text}", "'text/plain', not an image"),
    "not base64": (lambda text: f"data:image/png,{text}", "must be base64"),
    "padding inside": (lambda text: "AAA=" + text, "'=' as character 4"),
    "not ASCII": (lambda text: text[:8] + "é" + text[8:], "'é' as character 9"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAYLOADS)
def test_21_base64_as_clients_write_it(random: Random, kind: str) -> None:
    change, fault = PAYLOADS[kind]
    data = encoded(random.integers(0, 256, (*random.integers(3, 40, 2), 3), dtype=np.uint8), "PNG") + random.bytes(
        int(random.integers(3))
    )
    text = change(base64.b64encode(data).decode())
    if fault is None:
        assert decode_base64(text) == data
    else:
        with pytest.raises(Malformed, match=re.escape(fault)):
            decode_base64(text)


def test_21_spaces_for_plus_are_never_decoded_to_fewer_bytes(random: Random) -> None:
    text = ""
    while "+" not in text:
        text = base64.b64encode(random.bytes(90)).decode()
    with pytest.raises(Malformed, match=f"character {text.index('+') + 1}, .* a form decoded"):
        decode_base64(text.replace("+", " "))
    with pytest.raises(Malformed, match="cut short"):
        decode_base64(text[: 4 * int(random.integers(1, 20)) + 1])
