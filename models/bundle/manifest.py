"""The bundle manifest, `bundle.json`."""

from pathlib import PurePosixPath
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, Field, field_validator

from models.heads.uhead import Tap, UHeadConfig

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
LOCK = "bundle.lock.json"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TaskName = Literal["retrieval", "segmentation", "fewshot"]


class _Model(BaseModel, extra="forbid", frozen=True):
    """A misspelt field is an error, not a default."""


class _Source(_Model):
    """Files below a folder, each with its SHA-256."""

    files: dict[str, Digest]

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, Digest]) -> dict[str, Digest]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:  # a manifest from elsewhere must not reach other files
                raise ValueError(f"'{name}' leaves its folder")
        return files


class PathSource(_Source):
    """A folder relative to the bundle's."""

    kind: Literal["path"] = "path"
    path: str


class PackageSource(_Source):
    """A folder inside an installed Python package."""

    kind: Literal["package"] = "package"
    package: str
    path: str = "."


class HubSource(_Source):
    """A folder of a hub repository; `bundle pull` writes its commit and digests to `bundle.lock.json`."""

    kind: Literal["hub"] = "hub"
    repo: str
    revision: str
    path: str = "."
    files: dict[str, Digest] = {}  # from the lock file
    wanted: tuple[str, ...]  # names below `path` to download


AnySource = PathSource | PackageSource | HubSource
Source = Annotated[AnySource, Field(discriminator="kind")]


class Part(_Model):
    """A component that needs only its files; `key_map` names a renaming of their tensors (`models.bundle.files`)."""

    source: Source
    key_map: str | None = None


class TextPart(Part):
    """A text encoder.

    Attributes:
        loader: `transformers` (a folder with a tokenizer) or `open_clip` (by name).
        model: open_clip's model name.
        max_length: T of the conditioning states.
        zero_padding: whether states at padding are zero.
    """

    loader: Literal["transformers", "open_clip"] = "transformers"
    model: str = ""
    max_length: int = Field(default=77, ge=1, le=512)  # 77 is CLIP's
    zero_padding: bool = False


class CaptionerPart(_Model):
    """BLIP with greedy decoding after a prefix."""

    source: Source
    prefix: str = "a picture of"  # the paper's, with its number of tokens
    max_tokens: int = Field(default=20, ge=1, le=64)


class ExpertPart(Part):
    """A frozen discriminative network; `levels` are timm's `out_indices` or the transformer's blocks."""

    loader: Literal["timm", "open_clip"]
    model: str
    levels: tuple[int, ...]


class UHeadPart(UHeadConfig):
    """The U-head: its shape and its weights."""

    source: Source


class Components(_Model):
    """The parts of a bundle.

    Attributes:
        names: embeds class names and queries; default: `text`.
        expert_adapters: merged into the expert's weights when the bundle is loaded, see `models.expert`.
    """

    vae: Part
    unet: Part
    scheduler: Part
    text: TextPart
    names: TextPart | None = None
    captioner: CaptionerPart | None = None
    expert: ExpertPart | None = None
    expert_adapters: Part | None = None
    uhead: UHeadPart
    segmentation: Part


class TaskConfig(_Model):
    """How one task is served: resolution in px, diffusion time step, prompt templates with one `{}`."""

    resolution: int = Field(ge=32, le=2048, multiple_of=8)  # whole latents: VAEs reduce sides by up to 8
    timestep: int = Field(ge=0, le=999)
    templates: tuple[str, ...] = ("{}",)


class Profile(_Model):
    """Other taps of the same weights."""

    taps: tuple[Tap, ...]


class Manifest(_Model):
    """The contents of `bundle.json`."""

    schema_version: Literal[1]
    name: str
    licence: str
    attribution: str
    dimension: int = Field(ge=1)
    noise_seed: int = Field(ge=0)  # every image gets this noise (docs/adr/0001)
    taps: tuple[Tap, ...] = Field(min_length=1)
    tasks: dict[TaskName, TaskConfig]
    components: Components
    profiles: dict[str, Profile] = {}
    metrics: dict[str, float] = {}

    @field_validator("tasks")
    @classmethod
    def _all_tasks(cls, tasks: dict[TaskName, TaskConfig]) -> dict[TaskName, TaskConfig]:
        missing = set(get_args(TaskName)) - set(tasks)
        if missing:
            raise ValueError(f"no task {', '.join(sorted(missing))}")
        return tasks
