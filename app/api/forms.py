"""Reads multipart forms into memory, each part within the limits, and text as UTF-8 alone."""

import asyncio
import codecs
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from app.api.strict_json import nul_in, parse_json
from app.domain import Limits
from app.errors import FieldError, Invalid, Malformed, UnsupportedMedia
from app.imaging.sources import EncodedImage

_SLICE_BYTES, _PARTS_AT_ONCE = 16 * 1024, 64
Names = Mapping[str, Collection[str]]
"""Text fields of a form, each with the members of its JSON, where it is an object or a list of them."""
_CHARSETS = frozenset({"utf-8", "ascii"})  # as Python names them; ASCII is part of UTF-8
_PARAMETER = re.compile(r';\s*([^\s;=*"]+)(\*?)\s*=\s*(?:"((?:[^"\\]|\\.)*)"(?=\s*(?:;|$))|([^;]*))', re.DOTALL)
_EXTENDED = re.compile(r"(utf-8|us-ascii)'[^']*'(.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A multipart form: its files and its text fields, each with its name and in order."""

    files: Sequence[tuple[str, EncodedImage]]
    texts: Sequence[tuple[str, str]]
    max_json_values: int

    @property
    def text_length(self) -> int:
        """Characters of all text fields together."""
        return sum(len(text) for _, text in self.texts)

    def images(self, field: str) -> list[EncodedImage]:
        """The files of one field, in order."""
        return [image for name, image in self.files if name == field]

    def one_image(self, field: str) -> EncodedImage | None:
        """The file of a field that may not repeat. Raises Invalid where it does."""
        found = self.images(field)
        if len(found) > 1:
            raise _invalid(field, "is sent more than once")
        return found[0] if found else None

    def fields(self, *, json: Sequence[str] = (), repeated: str | None = None) -> dict[str, Any]:
        """The text fields but `repeated`; those named in `json` are parsed. Raises Invalid where one is sent twice."""
        found: dict[str, Any] = {}
        for name, value in self.texts:
            if name in found:
                raise _invalid(name, "is sent more than once")
            if name != repeated:
                found[name] = value
        for name in json:
            if name in found:
                found[name] = parse_json(found[name], self.max_json_values, what=f"The JSON of the field {name!r}")
        return found

    def repeated(self, field: str) -> list[str]:
        """All values of one text field, in order."""
        return [value for name, value in self.texts if name == field]


async def read_form(request: Request, limits: Limits, files: Collection[str], texts: Names) -> Form:
    """The form of a request of the type `multipart/form-data`.

    An empty text, and an empty file without a name, count as absent: HTML forms send them for fields left empty.

    Args:
        files: names of fields that must be files; a name that ends in `:` stands for all that start with it.

    Raises:
        Malformed: it is no such form, is over the limits of its parts, or holds text that is not UTF-8.
        UnsupportedMedia: its text is in another character set.
        Invalid: an unknown name, a file in place of text or text in place of a file, or NUL.
    """
    _, options = parse_options_header(request.headers.get("content-type"))
    _check_charset(options)
    parts = _Parts(limits, files, texts)
    try:
        parser = MultipartParser(options[b"boundary"], parts.callbacks())
        async for chunk in request.stream():
            # In slices: a chunk of tiny parts alone takes 40 ms.
            for start in range(0, len(chunk), _SLICE_BYTES):
                count = parts.count
                parser.write(chunk[start : start + _SLICE_BYTES])
                if parts.count > count + _PARTS_AT_ONCE:
                    await asyncio.sleep(0)
    except (FormParserError, KeyError) as err:
        raise Malformed("The multipart form cannot be read.") from err
    if not parts.is_complete:
        raise Malformed("The multipart form ends before its last boundary.")
    return Form(files=parts.files, texts=parts.texts, max_json_values=limits.max_json_values)


@dataclass(slots=True)
class _Part:
    """The part that is being read."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    name: str = ""
    is_file: bool = False
    file_name: str = ""
    fault: str = ""  # unless it turns out to be empty
    chunks: list[bytes] = field(default_factory=list)
    size_bytes: int = 0


class _Parts:
    """Collects the parts of a form from the parser's events."""

    def __init__(self, limits: Limits, file_names: Collection[str], text_names: Names) -> None:
        self.files: list[tuple[str, EncodedImage]] = []
        self.texts: list[tuple[str, str]] = []
        self.count = 0  # parts that began, those that count as absent too
        self.is_complete = False
        self._limits = limits
        self._file_names = file_names
        self._text_names = text_names
        self._part = _Part()
        self._header = [b"", b""]  # name and value, which may come in pieces

    def callbacks(self) -> Any:
        """The parser's callbacks, by the name of their event."""
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        return {f"on_{name}": getattr(self, f"_{name}") for name in (*names, "headers_finished")}

    def _part_begin(self) -> None:
        self._part = _Part()
        self.count += 1

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _header_end(self) -> None:
        name, value = self._header
        self._part.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))
        self._header = [b"", b""]

    def _headers_finished(self) -> None:
        part, headers = self._part, dict(self._part.headers)
        options = _disposition(headers.get("content-disposition", ""))
        if "name" not in options:
            raise Malformed("Each part of the form needs a Content-Disposition with a name.")
        part.name = _text(options["name"], "The name of a part")
        # A part with a file name is a file, whatever its field is called.
        part.is_file = "filename" in options
        part.file_name = _text(options.get("filename", b""), "The file name of a part")
        if not part.is_file:
            _check_charset(parse_options_header(headers.get("content-type"))[1])
        should_be_file = any(
            part.name == name or (name.endswith(":") and part.name.startswith(name)) for name in self._file_names
        )
        if not should_be_file and part.name not in self._text_names:
            raise _invalid(part.name, f"is no field of this form{self._hint(part.name)}")
        if part.is_file != should_be_file:
            part.fault = "must be a file, sent with a file name" if should_be_file else "is text, not a file"
        most = self._limits.max_form_parts
        if self.count > 2 * most or len(self.files if part.is_file else self.texts) >= most:
            raise Malformed(f"A form may hold {most} files and as many text fields.")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        part, most = self._part, self._limits.max_form_field_bytes
        part.size_bytes += end - start
        if part.fault:
            raise _invalid(part.name, part.fault)
        if not part.is_file and part.size_bytes > most:
            raise Malformed(f"A text field of a form may hold {most} bytes.")
        part.chunks.append(data[start:end])

    def _part_end(self) -> None:
        data = b"".join(self._part.chunks)
        name = self._part.name
        if not data and not self._part.file_name:
            return
        if self._part.fault:
            raise _invalid(name, self._part.fault)
        if self._part.is_file:
            self.files.append((name, EncodedImage(data=data, name=self._part.file_name)))
        else:
            self.texts.append((name, _text(data, f"The field {name[:100]!r}")))

    def _end(self) -> None:
        self.is_complete = True

    def _hint(self, name: str) -> str:
        """What the sender of an unknown field may have meant, and the fields that there are."""
        for owner, members in self._text_names.items():
            if name in members:
                return f": it belongs into the JSON of the field {owner!r}"
        files = [f"{one}<label>" if one.endswith(":") else one for one in sorted(self._file_names)]
        known = f"{' and '.join(files)} as files, {', '.join(sorted(self._text_names))} as text"
        meant = get_close_matches(name.lower()[:100], [*files, *self._text_names], 1)
        return f"{f', did you mean {meant[0]!r}' if meant else ''}: it takes {known}"


def _disposition(header: str) -> dict[str, bytes]:
    """The parameters of a Content-Disposition, as browsers, curl and Python's clients write them.

    The extended form `name*=utf-8''…` counts where there is no plain one: aiohttp and old clients send it alone. Its
    percent signs are escaped again, since labels in names are percent-decoded.

    Raises Malformed where a value cannot be read with certainty.
    """
    plain: dict[str, bytes] = {}
    extended: dict[str, bytes] = {}
    for key, star, quoted, token in _PARAMETER.findall(header):
        if star:
            found = _EXTENDED.fullmatch(token or quoted)
            if found is None:
                raise Malformed(f"The part's Content-Disposition has {key}* in another character set than UTF-8.")
            value = unquote_to_bytes(found[2])
            extended[key.lower()] = value.replace(b"%", b"%25") if key.lower() == "name" else value
        elif token.startswith('"') and key.lower() == "name":
            raise Malformed(f"The part's Content-Disposition has a quote in {key} that is not closed or not escaped.")
        else:
            plain[key.lower()] = (_unquoted(quoted) if quoted else token.strip()).encode("latin-1")
    return extended | plain


def _unquoted(text: str) -> str:
    """A quoted value without its escapes. Clients escape `"` and `\\`; aiohttp does so with every space, too."""
    escaped = r'\\(["\\])' if re.search(r"(?<!\\) ", text) else r'\\(["\\ ])'
    return re.sub(escaped, r"\1", text)


def _text(data: bytes, what: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as err:
        raise Malformed(f"{what} is not UTF-8.") from err
    if "\0" in text:
        raise nul_in(what)
    return text


def _check_charset(options: dict[bytes, bytes]) -> None:
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    try:
        known = codecs.lookup(charset).name
    except (LookupError, ValueError):
        known = ""
    if known not in _CHARSETS:
        raise UnsupportedMedia("Text must be UTF-8.")


def _invalid(field: str, message: str) -> Invalid:
    name = field[:100]  # a name of the client's, echoed in the response
    return Invalid(f"Field {name!r} {message}.", errors=[FieldError(field=name, message=message)])
