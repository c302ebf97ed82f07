"""From a bundle folder to a loaded model: the only place that decides device and dtype."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import AutoConfig, AutoModel, BlipConfig, BlipForConditionalGeneration, CLIPTextModel

from models.acceleration.convolutions import lean_convolutions, packed_convolutions
from models.acceleration.fusion import fold_batch_norms
from models.adapters import load_adapters, merge
from models.backbone import StableDiffusionBackbone, build_truncated_unet, build_vae_encoder
from models.bundle.files import fingerprint, only_file, read_json, read_manifest, read_tensors, verified
from models.bundle.manifest import CaptionerPart, ExpertPart, Manifest, Part, TextPart, UHeadPart
from models.captioner import BlipCaptioner, Captioner, NoCaptioner, load_processor
from models.encoder import Encoder, FrozenExtractor, NameEncoder
from models.errors import BundleError
from models.expert import OpenClipExpert, TimmExpert, read_lite0_package
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead, UHeadConfig, UHeadScale
from models.text import OpenClipNames, TextEncoder
from models.types import BundleInfo, TaskProfile

_NUMERICS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_DTYPES = {name: dtype for dtype, name in _NUMERICS.items()}
_POSITION_IDS = {"embeddings.position_ids"}
_BLIP_POSITION_IDS = {"text_decoder.bert.embeddings.position_ids"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBundle:
    """A bundle ready to serve."""

    folder: Path
    encoder: Encoder
    segmentation_head: SegmentationHead
    info: BundleInfo


def load_bundle(folder: Path, *, device: str = "auto", dtype: str = "auto", profile: str | None = None) -> LoadedBundle:
    """Checks every file of a bundle, then loads it.

    Args:
        folder: holds `bundle.json`.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the best there is.
        dtype: `fp32`, `bf16`, `fp16`, or `auto`: fp32 on a CPU, fp16 on a GPU (docs/adr/0025).
        profile: a profile of the manifest; None for its own taps.

    Raises:
        BundleError: a file is missing, damaged or does not fit; the message names it.
    """
    manifest = read_manifest(folder)
    placed, precision = _decide(device, dtype)
    taps = _taps(manifest, profile)
    extractor = load_extractor(folder, manifest, device=placed, dtype=precision, taps=taps)
    uhead = _ready(_load_uhead(manifest.components.uhead, manifest.dimension, folder), placed, precision)
    if placed.type == "cpu":
        # The backbone's taps are held to the library's at 1e-6.
        packed_convolutions(extractor.backbone)
        lean_convolutions(uhead)
        if isinstance(extractor.expert, TimmExpert):
            lean_convolutions(extractor.expert.network, torch.zeros(1, 3, 64, 64, dtype=precision))
        elif extractor.expert is not None:
            lean_convolutions(extractor.expert)
    digest = fingerprint(manifest, taps=taps, numerics=_NUMERICS[precision])
    encoder = Encoder(
        extractor,
        uhead,
        _load_names(manifest, folder, extractor.text, placed, precision),
        fingerprint=digest,
        device=placed,
        dtype=precision,
        is_recorded=placed.type in ("cpu", "cuda"),
    )
    info = BundleInfo(
        name=manifest.name,
        fingerprint=digest,
        dimension=manifest.dimension,
        device=str(placed),
        dtype=_NUMERICS[precision],
        captioner="none" if manifest.components.captioner is None else "blip",
        tasks={
            name: TaskProfile(resolution=task.resolution, timestep=task.timestep, templates=task.templates)
            for name, task in manifest.tasks.items()
        },
        manifest=manifest.model_dump(mode="json"),
    )
    head = _load_segmentation(manifest.components.segmentation, manifest.dimension, folder)
    return LoadedBundle(folder=folder, encoder=encoder, segmentation_head=head, info=info)


def load_extractor(
    folder: Path, manifest: Manifest, *, device: torch.device, dtype: torch.dtype, taps: tuple[str, ...]
) -> FrozenExtractor:
    """Everything before the heads. Raises as `load_bundle`."""
    parts = manifest.components
    backbone = StableDiffusionBackbone(
        load_vae(parts.vae, folder),
        _load_unet(parts.unet, folder, taps),
        read_json(only_file(parts.scheduler.source, verified(parts.scheduler.source, folder), ".json")),
        taps=taps,
        noise_seed=manifest.noise_seed,
    )
    extractor = FrozenExtractor(
        backbone,
        _load_text(parts.text, folder),
        _load_captioner(parts.captioner, folder, device, dtype),
        _load_folded_expert(parts.expert, parts.expert_adapters, folder) if parts.expert else None,
    )
    extractor.to(memory_format=torch.channels_last)
    ready: FrozenExtractor = _ready(extractor, device, dtype)
    return ready


def _decide(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        placed = torch.device(device)
    except RuntimeError as err:
        raise BundleError(f"'{device}' is no device torch knows") from err
    if placed.type == "cuda" and not torch.cuda.is_available():
        raise BundleError("the device 'cuda' was asked for and there is none")
    if dtype == "auto":
        return placed, torch.float32 if placed.type == "cpu" else torch.float16
    if dtype not in _DTYPES:
        raise BundleError(f"'{dtype}' is not one of {', '.join(_DTYPES)}")
    return placed, _DTYPES[dtype]


def _taps(manifest: Manifest, profile: str | None) -> tuple[str, ...]:
    if profile is None:
        return manifest.taps
    if profile not in manifest.profiles:
        raise BundleError(f"the bundle '{manifest.name}' has no profile '{profile}'")
    return manifest.profiles[profile].taps


def _ready(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return module.to(device=device, dtype=dtype).eval().requires_grad_(False)


def load_vae(part: Part, bundle: Path) -> AutoencoderKL:
    """The VAE's encoder alone. Raises as `load_bundle`."""
    folder = verified(part.source, bundle)
    config = read_json(only_file(part.source, folder, ".json"))
    with torch.device("meta"):
        whole = AutoencoderKL.from_config(config).state_dict()
    vae = build_vae_encoder(config)
    _assign(vae, only_file(part.source, folder, ".safetensors"), whole, part.key_map)
    return vae


def _load_unet(part: Part, bundle: Path, taps: tuple[str, ...]) -> UNet2DConditionModel:
    folder = verified(part.source, bundle)
    config = read_json(only_file(part.source, folder, ".json"))
    with torch.device("meta"):
        whole = UNet2DConditionModel.from_config(config).state_dict()
    unet = build_truncated_unet(config, taps)
    _assign(unet, only_file(part.source, folder, ".safetensors"), whole, part.key_map)
    return unet


def _assign(module: nn.Module, file: Path, whole: Mapping[str, torch.Tensor], key_map: str | None) -> None:
    """Loads a cut module from the file of the whole one, which may hold no tensor that neither has."""
    kept = module.state_dict()
    dropped = set(whole) - set(kept)
    tensors = read_tensors(file, kept, dtype=torch.float32, ignored=dropped, key_map=key_map)
    module.load_state_dict(tensors, strict=True, assign=True)


def _load_text(part: TextPart, bundle: Path) -> TextEncoder:
    folder = verified(part.source, bundle)
    file = only_file(part.source, folder, ".safetensors")
    tokenizer = only_file(part.source, folder, "tokenizer_config.json").parent
    config = AutoConfig.from_pretrained(file.parent, local_files_only=True)
    kind = CLIPTextModel._from_config if config.model_type == "clip_text_model" else AutoModel.from_config
    model = kind(config).eval()
    wanted = model.state_dict()
    model.load_state_dict(read_tensors(file, wanted, dtype=torch.float32, ignored=_POSITION_IDS, key_map=part.key_map))
    return TextEncoder(tokenizer, model, max_length=part.max_length, zero_padding=part.zero_padding)


def _load_names(
    manifest: Manifest, bundle: Path, text: TextEncoder, device: torch.device, dtype: torch.dtype
) -> NameEncoder:
    part = manifest.components.names
    if part is None:
        return text
    if part.loader == "transformers":
        loaded: TextEncoder = _ready(_load_text(part, bundle), device, dtype)
        return loaded
    folder = verified(part.source, bundle)
    tower = OpenClipNames(part.model)
    file = only_file(part.source, folder, ".safetensors")
    tower.load_state_dict(read_tensors(file, tower.state_dict(), dtype=torch.float32))
    ready: OpenClipNames = _ready(tower, device, dtype)
    return ready


def _load_captioner(part: CaptionerPart | None, bundle: Path, device: torch.device, dtype: torch.dtype) -> Captioner:
    if part is None:
        return NoCaptioner()
    folder = verified(part.source, bundle)
    model = BlipForConditionalGeneration(BlipConfig.from_pretrained(folder, local_files_only=True))
    file = only_file(part.source, folder, ".safetensors")
    tied = {name for name in model.state_dict() if name.startswith("text_decoder.cls.predictions.decoder")}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    model.load_state_dict(
        read_tensors(file, wanted, dtype=torch.float32, ignored=tied | _BLIP_POSITION_IDS), strict=False
    )
    model.tie_weights()
    return BlipCaptioner(
        _ready(model, device, dtype), load_processor(folder), prefix=part.prefix, max_tokens=part.max_tokens
    )


def load_expert(part: ExpertPart, bundle: Path) -> nn.Module:
    """The expert alone. Raises as `load_bundle`."""
    folder = verified(part.source, bundle)
    if part.key_map == "efficientnet-lite0-package":
        lite0 = TimmExpert(part.model, part.levels)
        file = only_file(part.source, folder, ".pth")
        lite0.network.load_state_dict(read_lite0_package(file, lite0.network.state_dict()))
        return lite0
    if part.key_map is not None:
        raise BundleError(f"no key map '{part.key_map}'")
    kind = TimmExpert if part.loader == "timm" else OpenClipExpert
    expert = kind(part.model, part.levels)
    file = only_file(part.source, folder, ".safetensors")
    expert.load_state_dict(read_tensors(file, expert.state_dict(), dtype=torch.float32))
    return expert


def _load_folded_expert(part: ExpertPart, adapters: Part | None, bundle: Path) -> nn.Module:
    expert = load_expert(part, bundle).eval()
    if adapters is not None:
        load_adapters(expert, only_file(adapters.source, verified(adapters.source, bundle), ".safetensors"))
        merge(expert)
    if isinstance(expert, TimmExpert):
        fold_batch_norms(expert.network, torch.zeros(1, 3, 64, 64))
    return expert


def uhead_config(part: UHeadPart, dimension: int) -> UHeadConfig:
    """The shape that a manifest gives a U-head."""
    fields = part.model_dump(exclude={"source", "scales"})
    scales = [UHeadScale(stride=s.stride, taps=s.taps, expert=s.expert, width=s.width) for s in part.scales]
    return UHeadConfig(scales=scales, dimension=dimension, **fields)


def new_uhead(part: UHeadPart, dimension: int) -> UHead:
    """A U-head of the manifest's shape, freshly initialised."""
    return UHead(uhead_config(part, dimension))


def _load_uhead(part: UHeadPart, dimension: int, bundle: Path) -> UHead:
    folder = verified(part.source, bundle)
    uhead = new_uhead(part, dimension)
    file = only_file(part.source, folder, ".safetensors")
    uhead.load_state_dict(read_tensors(file, uhead.state_dict(), dtype=torch.float32))
    return uhead


def _load_segmentation(part: Part, dimension: int, bundle: Path) -> SegmentationHead:
    folder = verified(part.source, bundle)
    head = SegmentationHead(dimension)
    file = only_file(part.source, folder, ".safetensors")
    head.load_state_dict(read_tensors(file, head.state_dict(), dtype=torch.float32))
    return head.eval().requires_grad_(False)
