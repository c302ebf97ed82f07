"""The base of all wire models, image inputs, and the types that several of them share."""

import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import CoreSchema, with_info_before_validator_function
from starlette.requests import HTTPConnection

from app.domain import Limits
from app.imaging.sources import Base64Image, StrokesImage, SvgImage
from app.tasks.features import ItemImage, Source

GALLERY_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
ITEM_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
EPISODE_PATTERN = r"^ep_[0-9a-f]{24}$"
# Ids that the server generates.
SUPPORT_PATTERN = r"^s_[0-9a-f]{16}$"
JOB_PATTERN = r"^job_[0-9a-f]{24}$"
IN_WORDS = {
    GALLERY_PATTERN: "Use up to 64 of a-z, 0-9, - and _, and begin with a letter or digit",
    ITEM_PATTERN: "Use up to 128 letters, digits, dots and _:-, and begin with a letter or digit",
}
"""Patterns of the names that callers choose."""
MAX_MEMBERS = 64  # of an object of a request other than metadata; none has a third of it
LIMIT = "x-limit"
"""Marks a JSON schema with the name of the limit that bounds it, until `openapi` knows the settings."""
OVER_LIMIT, OVER_WORK = "over_limit", "over_work"
"""Kinds of validation errors whose message is the answer's detail, with 422 and 413."""


FORM = "form of "
"""Begins the tags of unions, which are left out of the paths of errors."""


class Wire(BaseModel):
    """Base of requests and responses: no unknown fields, no NaN or infinity. Responses are read from records too."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, from_attributes=True)


class ProblemField(Wire):
    """One offending field: a path such as `items[3].metadata` and a sentence."""

    field: str
    message: str


class Problem(Wire):
    """Every error of this service (RFC 9457); `GET /errors/{code}` describes its code."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[ProblemField] = []


class Input(Wire):
    """Base of what clients send."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_members(cls, value: object) -> object:
        # pydantic makes an error for each unknown member, a hundred times its size.
        if isinstance(value, dict) and len(value) > MAX_MEMBERS:
            raise PydanticCustomError("too_many_members", "has more than {limit} members", {"limit": MAX_MEMBERS})
        return value


@dataclass(frozen=True, slots=True)
class FirstError:
    """Ends the validation of a list at its first bad entry; pydantic's `FailFast` cannot be part of a union."""

    def __get_pydantic_core_schema__(self, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        """The list's schema, with the option."""
        schema: Any = handler(source)
        found: CoreSchema = {**schema, "fail_fast": True}
        return found


FIRST_ERROR = FirstError()


@dataclass(frozen=True, slots=True)
class Limited:
    """Bounds a list by a limit of the settings before its entries are validated; it goes last in an annotation.

    The limit is read from the validation's context. `openapi` states it as the list's `maxItems`.

    Attributes:
        name: a field of `Limits`.
        message: what the client reads, with `{limit}`.
        is_work: over it the request is too much work, 413, not invalid.
    """

    name: str
    message: str
    is_work: bool = False

    def __get_pydantic_core_schema__(self, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        """The list's schema, after the check."""
        return with_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The list's JSON schema, with the name of the limit."""
        return {**handler(schema), LIMIT: self.name}

    def _check(self, value: object, info: ValidationInfo) -> object:
        if isinstance(info.context, Limits) and isinstance(value, list):
            limit: int = getattr(info.context, self.name)
            if len(value) > limit:
                kind = OVER_WORK if self.is_work else OVER_LIMIT
                raise PydanticCustomError(kind, self.message, {"limit": limit})
        return value


def examples(*bodies: JsonDict) -> ConfigDict:
    """The `model_config` of a request whose description has examples."""
    return ConfigDict(json_schema_extra={"examples": [*bodies]})


_UNSEEN = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})  # Unicode's categories of spaces, controls and formats


def visible(text: str) -> str:
    """Refuse a text of spaces and invisible characters alone."""
    if all(unicodedata.category(letter) in _UNSEEN for letter in text):
        raise PydanticCustomError("blank", "is blank")
    return text


# Labels and names go into logs and terminals.
def _printable(text: str) -> str:
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text):
        raise PydanticCustomError("control_characters", "holds control characters")
    return visible(text)


GalleryName = Annotated[str, Field(pattern=GALLERY_PATTERN)]
ItemId = Annotated[str, Field(pattern=ITEM_PATTERN)]
Label = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
Caption = Annotated[str, Field(max_length=1000)]
Reproducible = Annotated[
    bool, Field(description="Compute in a pass of fixed size, so that equal inputs give equal bits under any load.")
]
Timings = dict[str, float]
Metadata = dict[str, JsonValue]
# Not validated further: `parse_filter` does it, and ends early.
FilterInput = Annotated[
    dict[str, Any],
    Field(
        description="`{field: value}` or `{field: {op: value}}` with eq ne in lt lte gt gte any all exists, joined by"
        " `and`, `or`, `not`. A field of such a name is written `{field, op, value}`.",
        examples=[{"kind": "icon", "year": {"gte": 2020}}],
    ),
]


Coordinates = Annotated[list[float], FIRST_ERROR]
Stroke = Annotated[list[Coordinates], FIRST_ERROR, Field(min_length=2, max_length=3)]


class Base64Input(Input):
    """A file as base64 text or a base64 data URI."""

    base64: Annotated[str, Field(min_length=1)]

    @property
    def source(self) -> Source:
        """The image source that the input describes; the other forms have it too."""
        return Base64Image(text=self.base64)


class StrokesInput(Input):
    """A drawing: strokes of `[[x…], [y…]]` on a canvas; a third list, of times, is allowed and ignored."""

    strokes: Annotated[
        list[Stroke],
        FIRST_ERROR,
        Field(min_length=1),
        Limited("max_points", "A drawing has at most {limit} strokes.", is_work=True),
    ]
    width: Annotated[float, Field(gt=0)]  # of the canvas, in the strokes' units
    height: Annotated[float, Field(gt=0)]

    @property
    def source(self) -> Source:
        return StrokesImage(strokes=self.strokes, width=self.width, height=self.height)


class SvgInput(Input):
    """An SVG document of paths and basic shapes."""

    svg: Annotated[str, Field(min_length=1)]

    @property
    def source(self) -> Source:
        return SvgImage(text=self.svg)


class ItemName(Input):
    """The gallery and the id of an item."""

    gallery: GalleryName
    id: ItemId


class ItemInput(Input):
    """The stored image of a gallery item."""

    item: ItemName

    @property
    def source(self) -> Source:
        return ItemImage(gallery=self.item.gallery, id=self.item.id)


# The discriminator names the form in errors; a plain union would report the errors of all four.
def _form(value: object) -> str | None:
    if isinstance(value, dict):
        return next((FORM + form for form in ("base64", "strokes", "svg", "item") if form in value), None)
    return None


ImageInput = Annotated[
    Annotated[Base64Input, Tag(f"{FORM}base64")]
    | Annotated[StrokesInput, Tag(f"{FORM}strokes")]
    | Annotated[SvgInput, Tag(f"{FORM}svg")]
    | Annotated[ItemInput, Tag(f"{FORM}item")],
    Discriminator(
        _form,
        custom_error_type="image_input",
        custom_error_message="an image is an object with exactly one of base64, strokes, svg, item",
    ),
]

FINGERPRINT = "5a3c0e9b7d14"
"""Of examples; a real one has 64 digits."""
LINE: JsonDict = {"strokes": [[[10, 240], [20, 230]]], "width": 256, "height": 256}
"""A slanted line drawn as one stroke, for examples."""


def link(connection: HTTPConnection, path: str) -> str:
    """The address of a path as clients reach it: below the prefix of a proxy."""
    prefix: str = getattr(connection.state, "prefix", "")
    return prefix + path
