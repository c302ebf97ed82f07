"""The base of all wire models, and the types that several of them share."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue
from pydantic.config import JsonDict

GALLERY_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
ITEM_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
EPISODE_PATTERN = r"^ep_[0-9a-f]{24}$"
# Ids that the server generates.
SUPPORT_PATTERN = r"^s_[0-9a-f]{16}$"
JOB_PATTERN = r"^job_[0-9a-f]{24}$"


class Wire(BaseModel):
    """Base of requests and responses: no unknown fields, no NaN or infinity. Responses are read from records too."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, from_attributes=True)


def examples(*bodies: JsonDict) -> ConfigDict:
    """The `model_config` of a request whose description has examples."""
    return ConfigDict(json_schema_extra={"examples": [*bodies]})


# Labels and names go into logs and terminals.
def _printable(text: str) -> str:
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text):
        raise ValueError("holds control characters")
    return text


GalleryName = Annotated[str, Field(pattern=GALLERY_PATTERN)]
ItemId = Annotated[str, Field(pattern=ITEM_PATTERN)]
Label = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
Caption = Annotated[str, Field(max_length=1000)]
Reproducible = Annotated[
    bool, Field(description="Compute in a pass of fixed size, so that equal inputs give equal bits under any load.")
]
Timings = dict[str, float]
Metadata = dict[str, JsonValue]
FilterInput = Annotated[
    dict[str, JsonValue],
    Field(
        description="`{field: value}` or `{field: {op: value}}` with eq ne in lt lte gt gte any all exists, joined by"
        " `and`, `or`, `not`. A field of such a name is written `{field, op, value}`.",
        examples=[{"kind": "icon", "year": {"gte": 2020}}],
    ),
]
