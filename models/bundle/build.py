"""From a bundle folder to a loaded model: the only place that decides device and dtype."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import AutoConfig, AutoModel, BlipConfig, BlipForConditionalGeneration, BlipProcessor, CLIPTextModel

from models.acceleration.convolutions import optimize_convolutions, pack_convolutions
from models.acceleration.fusion import fuse_batch_norms
from models.backbone import StableDiffusionBackbone, build_truncated_unet, build_vae_encoder
from models.bundle.files import fingerprint, only_file, read_json, read_manifest, read_tensors, verified
from models.bundle.manifest import AnySource, CaptionerPart, ExpertPart, Manifest, Part, TextPart
from models.encoder import Encoder, FrozenExtractor
from models.errors import BundleError
from models.expert import OpenClipExpert, TimmExpert, adapt, adapter_tensors, merge_adapters, read_lite0_package
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
from models.text import BlipCaptioner, OpenClipNames, TextEncoder
from models.types import BundleInfo, TaskProfile

_NUMERICS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_DTYPES = {name: dtype for dtype, name in _NUMERICS.items()}
# Constants that older releases of transformers stored with the weights.
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
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`: a GPU if there is one.
        dtype: `fp32`, `bf16`, `fp16`, or `auto`: fp32 on a CPU, fp16 on a GPU (docs/adr/0025).
        profile: a profile of the manifest; None for the manifest's own taps.

    Raises:
        BundleError: a file is missing, damaged or does not fit; the message names it.
    """
    manifest = read_manifest(folder, profile)
    parts = manifest.components
    placed, precision = _decide(device, dtype)
    if parts.uhead is None or parts.segmentation is None:
        raise BundleError(f"the bundle '{manifest.name}' has no trained heads")
    # A profile without a tap of the U-head is refused before gigabytes are read.
    if missing := set(parts.uhead.tap_shapes) - set(manifest.taps):
        raise BundleError(f"the U-head of '{manifest.name}' needs the tap '{min(missing)}'")
    extractor = load_extractor(folder, manifest, device=placed, dtype=precision)
    uhead = UHead(parts.uhead, manifest.dimension)
    _fill(uhead, parts.uhead.source, folder)
    _ready(uhead, placed, precision)
    if placed.type == "cpu":  # the replacements are kernels for CPUs
        _optimize(extractor, uhead, precision)
    digest = fingerprint(manifest, numerics=_NUMERICS[precision])
    encoder = Encoder(
        extractor,
        uhead,
        _load_names(parts.names, folder, extractor.text, placed, precision),
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
        captioner="none" if parts.captioner is None else "blip",
        tasks={name: TaskProfile(**task.model_dump()) for name, task in manifest.tasks.items()},
        manifest=manifest.model_dump(mode="json"),
    )
    head = SegmentationHead(manifest.dimension)
    _fill(head, parts.segmentation.source, folder)
    head.eval().requires_grad_(False)  # stays on the CPU, in float32
    return LoadedBundle(folder=folder, encoder=encoder, segmentation_head=head, info=info)


def load_extractor(folder: Path, manifest: Manifest, *, device: torch.device, dtype: torch.dtype) -> FrozenExtractor:
    """Loads everything before the heads. Raises as `load_bundle`."""
    parts = manifest.components
    backbone = StableDiffusionBackbone(
        load_vae(parts.vae, folder),
        _load_cut(UNet2DConditionModel, parts.unet, folder, lambda config: build_truncated_unet(config, manifest.taps)),
        read_json(_source_file(parts.scheduler.source, folder, ".json")),
        taps=manifest.taps,
        noise_seed=manifest.noise_seed,
    )
    extractor = FrozenExtractor(
        backbone,
        _load_text(parts.text, folder),
        _load_captioner(parts.captioner, folder, device, dtype) if parts.captioner else None,
        _load_fused_expert(parts.expert, parts.expert_adapters, folder) if parts.expert else None,
    )
    extractor.to(memory_format=torch.channels_last)  # the layout of cuDNN's and oneDNN's fast convolutions
    _ready(extractor, device, dtype)
    return extractor


def load_vae(part: Part, bundle: Path) -> AutoencoderKL:
    """Loads the VAE's encoder. Raises as `load_bundle`."""
    return _load_cut(AutoencoderKL, part, bundle, build_vae_encoder)


def load_expert(part: ExpertPart, bundle: Path) -> nn.Module:
    """Loads the expert without adapters. Raises as `load_bundle`."""
    if part.key_map == "efficientnet-lite0-package":
        lite0 = TimmExpert(part.model, part.levels)
        file = _source_file(part.source, bundle, ".pth")
        # The package names the tensors in its own way.
        lite0.network.load_state_dict(read_lite0_package(file, lite0.network.state_dict()))
        return lite0
    if part.key_map is not None:
        raise BundleError(f"no key map '{part.key_map}'")
    expert = (TimmExpert if part.loader == "timm" else OpenClipExpert)(part.model, part.levels)
    _fill(expert, part.source, bundle)
    return expert


def load_adapters(expert: nn.Module, file: Path) -> None:
    """Adapts an expert with the adapters of a file, to train them further or to merge them.

    Raises:
        BundleError: the file is missing.
        TensorMismatchError: it holds adapters of another network or rank.
    """
    adapt(expert)
    # Copied by hand: in the state dict an adapter's names depend on torch's parametrizations.
    wanted = adapter_tensors(expert)
    read = read_tensors(file, wanted)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(read[name])


def _decide(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        placed = torch.device(device)
    except RuntimeError as err:
        raise BundleError(f"'{device}' is no device torch knows: name cpu, cuda, cuda:1, mps or auto") from err
    if placed.type == "cuda" and not torch.cuda.is_available():
        raise BundleError("the device 'cuda' was asked for and there is none: name cpu or auto")
    if dtype == "auto":
        return placed, torch.float32 if placed.type == "cpu" else torch.float16  # few CPUs have fast halves
    if dtype not in _DTYPES:
        raise BundleError(f"'{dtype}' is not one of {', '.join(_DTYPES)}")
    return placed, _DTYPES[dtype]


def _ready(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    module.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _optimize(extractor: FrozenExtractor, uhead: UHead, dtype: torch.dtype) -> None:
    # Bit-equal replacements only: the backbone's taps must agree with the library's pipeline to 1e-6.
    pack_convolutions(extractor.backbone)
    optimize_convolutions(uhead)
    if isinstance(extractor.expert, TimmExpert):
        optimize_convolutions(extractor.expert.network, torch.zeros(1, 3, 64, 64, dtype=dtype))
    elif extractor.expert is not None:
        optimize_convolutions(extractor.expert)


def _source_file(source: AnySource, bundle: Path, suffix: str) -> Path:
    return only_file(source, verified(source, bundle), suffix)


def _fill(module: nn.Module, source: AnySource, bundle: Path) -> None:
    """Loads a module's tensors from the source's one safetensors file."""
    module.load_state_dict(read_tensors(_source_file(source, bundle, ".safetensors"), module.state_dict()))


def _load_cut(kind: Any, part: Part, bundle: Path, build: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Loads a truncated diffusers model; the file may hold the tensors of the whole one, and no others."""
    folder = verified(part.source, bundle)
    config = read_json(only_file(part.source, folder, ".json"))
    with torch.device("meta"):  # names only: the whole U-Net is never allocated
        whole = kind.from_config(config).state_dict()
    cut = build(config)
    wanted = cut.state_dict()
    file = only_file(part.source, folder, ".safetensors")
    tensors = read_tensors(file, wanted, ignored=set(whole) - set(wanted), key_map=part.key_map)
    cut.load_state_dict(tensors, assign=True)  # the model is still on `meta`
    return cut


def _load_text(part: TextPart, bundle: Path) -> TextEncoder:
    folder = verified(part.source, bundle)
    file = only_file(part.source, folder, ".safetensors")
    tokenizer = only_file(part.source, folder, "tokenizer_config.json").parent
    config = AutoConfig.from_pretrained(file.parent, local_files_only=True)
    kind = CLIPTextModel._from_config if config.model_type == "clip_text_model" else AutoModel.from_config
    model = kind(config).eval()
    model.load_state_dict(read_tensors(file, model.state_dict(), ignored=_POSITION_IDS, key_map=part.key_map))
    return TextEncoder(tokenizer, model, max_length=part.max_length, zero_padding=part.zero_padding)


def _load_names(
    part: TextPart | None, bundle: Path, text: TextEncoder, device: torch.device, dtype: torch.dtype
) -> TextEncoder | OpenClipNames:
    if part is None:
        return text  # one model for both
    if part.loader == "transformers":
        names: TextEncoder | OpenClipNames = _load_text(part, bundle)
    else:
        names = OpenClipNames(part.model)
        _fill(names, part.source, bundle)
    _ready(names, device, dtype)
    return names


def _load_captioner(part: CaptionerPart, bundle: Path, device: torch.device, dtype: torch.dtype) -> BlipCaptioner:
    folder = verified(part.source, bundle)
    model = BlipForConditionalGeneration(BlipConfig.from_pretrained(folder, local_files_only=True))
    file = only_file(part.source, folder, ".safetensors")
    tied = {name for name in model.state_dict() if name.startswith("text_decoder.cls.predictions.decoder")}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    # Not strict, because tied weights come from the embeddings; `read_tensors` has checked all others.
    model.load_state_dict(read_tensors(file, wanted, ignored=tied | _BLIP_POSITION_IDS), strict=False)
    model.tie_weights()
    _ready(model, device, dtype)
    processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
    return BlipCaptioner(model, processor, prefix=part.prefix, max_tokens=part.max_tokens)


def _load_fused_expert(part: ExpertPart, adapters: Part | None, bundle: Path) -> nn.Module:
    expert = load_expert(part, bundle).eval()
    if adapters is not None:
        load_adapters(expert, _source_file(adapters.source, bundle, ".safetensors"))
        merge_adapters(expert)
    if isinstance(expert, TimmExpert):  # after the merge: fusing scales the weights that the adapters were trained on
        fuse_batch_norms(expert.network, torch.zeros(1, 3, 64, 64))
    return expert
