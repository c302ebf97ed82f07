"""The bundle manifest, `bundle.json`."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, Field, RootModel, field_validator, model_validator

from models.heads.posteriors import PosteriorsConfig
from models.heads.uhead import Tap, UHeadConfig
from models.types import MAX_TILES

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
LOCK = "bundle.lock.json"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TaskName = Literal["retrieval", "segmentation", "fewshot"]
PooledFeature = Literal["semantic", "visual"]


class _Model(BaseModel, extra="forbid", frozen=True):
    """A misspelt field is an error, not a default."""


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:  # a manifest from elsewhere must not reach other files
        raise ValueError(f"'{name}' leaves its folder")
    return name


FileName = Annotated[str, AfterValidator(_inside)]


class _Source(_Model):
    """Files below a folder, each with its SHA-256."""

    files: dict[FileName, Digest]


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
    path: FileName = "."
    files: dict[FileName, Digest] = {}  # from the lock file
    wanted: tuple[FileName, ...] = Field(min_length=1)  # names below `path` to download


class LockedSource(_Model):
    """A hub source as it was pulled: `requested` is the manifest's revision, `revision` the commit."""

    repo: str
    requested: str
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    files: dict[FileName, Digest]

    def pins(self, source: HubSource) -> bool:
        """Returns whether this entry was made for a source as the manifest has it now."""
        is_same = (self.repo, self.requested) == (source.repo, source.revision)
        return is_same and set(self.files) == set(source.wanted)


class Lock(RootModel[dict[str, LockedSource]], frozen=True):
    """The contents of `bundle.lock.json`: entries by name, see `models.bundle.files.hub_sources`."""


AnySource = PathSource | PackageSource | HubSource
Source = Annotated[AnySource, Field(discriminator="kind")]


class Part(_Model):
    """A component that needs only its files; `key_map` names a renaming of their tensors (`models.bundle.tensors`)."""

    source: Source
    key_map: str | None = None


class UnetPart(Part):
    """The U-Net.

    Attributes:
        config: where its `config.json` lies if its weights come without one: a drop-in U-Net has that of the original.
        is_noiseless: it was trained on clean latents, so none get noise; the time step stays its input.
    """

    config: Source | None = None
    is_noiseless: bool = False


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


class VaePart(Part):
    """The VAE.

    Attributes:
        loader: `kl`, or `tiny`: diffusers' AutoencoderTiny, a distilled encoder whose output is the posterior mean,
            scaled.
        resolution: side of the view that the VAE and the U-Net see, px; None for the tasks' resolution.
    """

    loader: Literal["kl", "tiny"] = "kl"
    resolution: int | None = Field(default=None, ge=32, le=2048, multiple_of=8)


class ClipPart(Part):
    """An open_clip model with both towers in one file: its text tower embeds names, its image tower images."""

    model: str


class CaptionerPart(_Model):
    """BLIP with greedy decoding after a prefix; `resolution` in px, None for the file's own."""

    source: Source
    resolution: int | None = Field(default=None, ge=32, le=1024, multiple_of=16)
    prefix: str = "a picture of"  # the paper's, with its number of tokens
    max_tokens: int = Field(default=20, ge=1, le=64)


class ExpertPart(Part):
    """A frozen discriminative network.

    Attributes:
        levels: timm's `out_indices`, or the transformer's blocks.
        resolution: side of the expert's own view, px; None for the backbone's, to the next whole patch.
    """

    loader: Literal["timm", "open_clip"]
    model: str
    levels: tuple[int, ...]
    resolution: int | None = Field(default=None, ge=32, le=1024)


class TrainingFree(_Model):
    """How a bundle without trained heads makes its features from CLIP and the U-Net.

    Attributes:
        tap: its mean over cells is the diffusion half of `visual`.
        diffusion_weight, clip_weight: of the halves of `visual`, which has unit length.
        refined_by: up block whose last self-attention refines CLIP's patch features; None leaves them as they are.
        temperature: of the softmax over class names in a mask.
    """

    tap: Tap
    diffusion_weight: float = Field(gt=0)
    clip_weight: float = Field(gt=0)
    refined_by: Tap | None = None
    temperature: float = Field(default=0.01, gt=0)


class UHeadPart(UHeadConfig):
    """The U-head: its shape and its weights."""

    source: Source


class PosteriorsPart(PosteriorsConfig):
    """Class posteriors: their shape and what was trained or measured; the classifier is in the expert's own file."""

    source: Source


class Components(_Model):
    """The parts of a bundle.

    Attributes:
        posteriors: of the expert's classifier, joined to `pooled` and `dense` (docs/adr/0050).
        names: embeds class names and queries; default: `clip`'s text tower, or `text`.
        expert_adapters: merged into the expert's weights when the bundle is loaded, see `models.expert`.
    """

    vae: VaePart
    unet: UnetPart
    scheduler: Part
    text: TextPart
    names: TextPart | None = None
    captioner: CaptionerPart | None = None
    expert: ExpertPart | None = None
    expert_adapters: Part | None = None
    clip: ClipPart | None = None
    uhead: UHeadPart | None = None
    posteriors: PosteriorsPart | None = None
    segmentation: Part | None = None


class TaskConfig(_Model):
    """How one task is served.

    Attributes:
        resolution: in px.
        timestep: diffusion time step.
        templates: prompts with one `{}`.
        tile: side of the square of an image that a tile of its masks shows, px; None for the resolution.
        max_tiles: largest number of tiles of an image; tiles of larger images show more.
        features: weights of the features by which images are compared with images: the similarity is the weighted mean
            of their cosines. Sketches and texts are compared by `semantic` alone, masks by `dense`.
    """

    resolution: int = Field(ge=32, le=2048, multiple_of=8)  # whole latents: VAEs reduce sides by up to 8
    timestep: int = Field(ge=0, le=999)
    templates: tuple[str, ...] = ("{}",)
    tile: int | None = Field(default=None, ge=32, le=2048)
    max_tiles: int = Field(default=MAX_TILES, ge=0, le=256)
    features: dict[PooledFeature, Annotated[float, Field(gt=0, le=1000)]] = Field({"semantic": 1.0}, min_length=1)


class Profile(_Model):
    """Other taps of the same weights, or other components: a component named here replaces the manifest's own."""

    taps: tuple[Tap, ...] | None = Field(default=None, min_length=1)
    components: dict[str, dict[str, Any]] = {}


class Manifest(_Model):
    """The contents of `bundle.json`."""

    schema_version: Literal[1]
    name: str
    licence: str
    attribution: str
    good_for: str = ""  # what users may expect of its answers, and what not
    dimension: int = Field(ge=1)
    noise_seed: int = Field(ge=0)  # every image gets this noise (docs/adr/0001)
    taps: tuple[Tap, ...] = Field(min_length=1)
    tasks: dict[TaskName, TaskConfig]
    components: Components
    training_free: TrainingFree | None = None
    profiles: dict[str, Profile] = {}
    metrics: dict[str, float] = {}

    @field_validator("tasks")
    @classmethod
    def _all_tasks(cls, tasks: dict[TaskName, TaskConfig]) -> dict[TaskName, TaskConfig]:
        missing = set(get_args(TaskName)) - set(tasks)
        if missing:
            raise ValueError(f"no task {', '.join(sorted(missing))}")
        if "visual" in tasks["segmentation"].features:
            raise ValueError("`segmentation` compares cells of `dense`: it takes no `features`")
        return tasks

    @model_validator(mode="after")
    def _heads_or_none(self) -> Self:
        parts = self.components
        if (parts.uhead is None) != (parts.segmentation is None):
            raise ValueError("`uhead` and `segmentation` are trained together: name both or neither")
        if (parts.uhead is None) == (self.training_free is None):
            raise ValueError("name either trained heads (`uhead`, `segmentation`) or `training_free`")
        if parts.posteriors is not None and (parts.uhead is None or parts.expert is None):
            raise ValueError("`posteriors` needs an `expert` and a `uhead`")
        if self.training_free is not None and parts.clip is None:
            raise ValueError("`training_free` needs the component `clip`")
        return self

    def compared(self, task: TaskName) -> dict[PooledFeature, float]:
        """Returns the features in a task's vectors, in order, with weights that sum to one.

        Items hold `semantic` whatever images are compared by: sketches and texts find them by it.
        """
        weights = self.tasks[task].features
        total = sum(weights.values())
        held = {*weights, "semantic"} if task == "retrieval" else set(weights)
        names = (name for name in get_args(PooledFeature) if name in held)
        return {name: weights.get(name, 0.0) / total for name in names}
