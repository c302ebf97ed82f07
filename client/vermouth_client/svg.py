"""SVG files in the encoding that their byte order mark or XML declaration names; the service reads UTF-8."""

import codecs
import re

_SVG = re.compile(rb"<(?:[\w.-]+:)?svg[\s/>]")
_MARKS = (  # of UTF-32 first: they begin like those of UTF-16
    *((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"), (b"<\0", "utf-16-le"), (b"\0<", "utf-16-be")),
)
_DECLARED = re.compile(rb"""\s*<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z][\w.-]*)["']""")
_DECLARATION = re.compile(r"\s*<\?xml\s[^>]*>")


def is_svg(data: bytes) -> bool:
    """Whether a file is an SVG document; the service takes its text in place of a file."""
    return data.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"<" and _SVG.search(data) is not None


def utf8_svg(data: bytes) -> bytes:
    """Returns an SVG of another encoding in UTF-8, without its declaration; any other file as it is.

    Raises ValueError if the SVG is in none of UTF-8 and the encoding that it names.
    """
    wide = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if wide is None and (not is_svg(data) or _decoded(data, "utf-8") is not None):
        return data
    declared = _DECLARED.match(data)
    named = wide or (declared[1].decode() if declared else "UTF-8")
    text = _decoded(data, named)
    if text is not None and is_svg(text.encode()):
        return _DECLARATION.sub("", text, count=1).encode()
    if wide is None:
        raise ValueError(f"The SVG is not in {named}: save it as UTF-8, or name its encoding in the XML declaration.")
    return data


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        text = data.decode(encoding)
        text.encode()  # some encodings have halves of pairs
    except (LookupError, ValueError):  # an unknown name; UnicodeError is a ValueError
        return None
    return text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
