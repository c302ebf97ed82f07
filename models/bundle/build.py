"""From a bundle folder to a loaded model: the only place that decides device and dtype."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.acceleration.convolutions import optimize_convolutions, pack_convolutions
from models.acceleration.halves import compute_in_float32, computes_in_float32
from models.backbone import StableDiffusionBackbone
from models.bundle.files import fingerprint, read_json, read_manifest
from models.bundle.manifest import Manifest, TextPart, TrainingFree
from models.bundle.parts import (
    fill,
    load_captioner,
    load_classifier,
    load_clip,
    load_fused_expert,
    load_open_clip_names,
    load_posteriors,
    load_text,
    load_unet,
    load_vae,
    source_file,
)
from models.clip import ClipImages
from models.encoder import Encoder, FrozenExtractor, TrainedNetwork
from models.errors import BundleError
from models.expert import TimmExpert
from models.heads.segmentation import SegmentationHead
from models.heads.training_free import BACKGROUNDS, TrainingFreeHead
from models.heads.uhead import UHead
from models.text import OpenClipNames, TextEncoder
from models.training_free import TrainingFreeNetwork
from models.types import FEATURES, LARGE_PARAMETERS, BundleInfo, TaskProfile

_NUMERICS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_DTYPES = {name: dtype for dtype, name in _NUMERICS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBundle:
    """A bundle ready to serve."""

    folder: Path
    encoder: Encoder
    segmentation_head: SegmentationHead | TrainingFreeHead
    info: BundleInfo


def load_bundle(
    folder: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    profile: str | None = None,
    on_stage: Callable[[str], None] = lambda _stage: None,
) -> LoadedBundle:
    """Checks every file of a bundle, then loads it.

    Args:
        folder: holds `bundle.json`.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`: a GPU if there is one.
        dtype: `fp32`, `bf16`, `fp16`, or `auto`: fp32 on a CPU, fp16 on a GPU (docs/adr/0025).
        profile: a profile of the manifest; None for the manifest's own taps.
        on_stage: called with what is loaded next.

    Raises:
        BundleError: a file is missing, damaged or does not fit; the message names it.
    """
    manifest = read_manifest(folder, profile)
    placed, stored = _decide(device, dtype)
    precision = torch.float32 if computes_in_float32(placed) else stored
    _check_taps(manifest)  # before gigabytes are read
    extractor = load_extractor(folder, manifest, device=placed, dtype=precision, stored=stored, on_stage=on_stage)
    on_stage("heads and names")
    network, names = _load_network(folder, manifest, extractor, placed, precision)
    network.eval().requires_grad_(False)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    is_small, numerics = parameters <= LARGE_PARAMETERS, _NUMERICS[stored]
    digest = fingerprint(manifest, numerics=numerics)
    if placed.type == "cpu" and is_small:  # the replacements are kernels for CPUs
        _optimize(extractor, network, precision)
    encoder = Encoder(
        extractor,
        network,
        names,
        fingerprint=digest,
        device=placed,
        dtype=precision,
        is_recorded=placed.type == "cuda" or (placed.type == "cpu" and is_small),
    )
    return LoadedBundle(
        folder=folder,
        encoder=encoder,
        segmentation_head=_load_segmentation(folder, manifest, encoder),
        info=_info(manifest, encoder, digest, device=str(placed), dtype=numerics, parameters=parameters),
    )


def load_extractor(
    folder: Path,
    manifest: Manifest,
    *,
    device: torch.device,
    dtype: torch.dtype,
    stored: torch.dtype | None = None,
    on_stage: Callable[[str], None] = lambda _stage: None,
) -> FrozenExtractor:
    """Loads everything before the heads.

    Args:
        dtype: of the computation.
        stored: of the U-Net's weights, more than half of all; `dtype` by default.

    Other arguments and errors as `load_bundle`.
    """
    parts = manifest.components
    on_stage("VAE")
    vae = load_vae(parts.vae, folder, dtype)
    on_stage("U-Net")
    unet = load_unet(parts.unet, folder, manifest.taps, stored or dtype)
    backbone = StableDiffusionBackbone(
        vae,
        unet,
        read_json(source_file(parts.scheduler.source, folder, ".json")),
        taps=manifest.taps,
        noise_seed=manifest.noise_seed,
        is_noiseless=parts.unet.is_noiseless,
        resolution=parts.vae.resolution,
    )
    on_stage("text encoder")
    text = load_text(parts.text, folder, dtype)
    captioner, expert = None, None
    if parts.captioner is not None:
        on_stage("captioner")
        captioner = load_captioner(parts.captioner, folder, device, dtype)
    if parts.expert is not None:
        on_stage("expert")
        expert = load_fused_expert(parts.expert, parts.expert_adapters, folder)
    extractor = FrozenExtractor(backbone, text, captioner, expert)
    extractor.to(memory_format=torch.channels_last)  # the layout of cuDNN's and oneDNN's fast convolutions
    if stored not in (None, dtype):
        compute_in_float32(unet)
        extractor.to(device)
    else:
        extractor.to(device=device, dtype=dtype)
    extractor.eval().requires_grad_(False)
    return extractor


def _check_taps(manifest: Manifest) -> None:
    uhead, free = manifest.components.uhead, manifest.training_free
    if uhead is not None and (missing := set(uhead.tap_shapes) - set(manifest.taps)):
        raise BundleError(f"the U-head of '{manifest.name}' needs the tap '{min(missing)}'")
    if free is not None and free.tap not in manifest.taps:
        raise BundleError(f"the feature `visual` of '{manifest.name}' needs the tap '{free.tap}'")


def _load_network(
    folder: Path, manifest: Manifest, extractor: FrozenExtractor, device: torch.device, dtype: torch.dtype
) -> tuple[TrainedNetwork | TrainingFreeNetwork, TextEncoder | OpenClipNames]:
    """The pass, and the model of names: `clip` serves both, read once."""
    parts = manifest.components
    names = _load_names(parts.names, folder, dtype)
    if parts.uhead is not None:
        uhead = UHead(parts.uhead, manifest.dimension)
        fill(uhead, parts.uhead.source, folder)
        _ready(uhead, device, dtype)
        if names is None and parts.clip is not None:
            names = load_open_clip_names(parts.clip, folder, dtype)
        network: TrainedNetwork | TrainingFreeNetwork = TrainedNetwork(extractor, uhead)
        if parts.posteriors is not None and parts.expert is not None:
            classifier = load_classifier(parts.expert, folder)
            posteriors = load_posteriors(parts.posteriors, manifest.dimension, folder)
            network = TrainedNetwork(extractor, uhead, classifier, posteriors)
            _ready(network, device, dtype)
    else:
        if manifest.training_free is None or parts.clip is None:
            raise BundleError(f"the bundle '{manifest.name}' has neither trained heads nor `training_free`")
        images, clip_names = load_clip(parts.clip, folder, dtype)
        if images.dimension != manifest.dimension:
            raise BundleError(f"the dimension of '{manifest.name}' is not {images.dimension}, that of its `clip`")
        _ready(images, device, dtype)
        names = names or clip_names
        network = _training_free(manifest.training_free, manifest, extractor, images)
    if names is not None:
        _ready(names, device, dtype)
    return network, names or extractor.text


def _training_free(
    free: TrainingFree, manifest: Manifest, extractor: FrozenExtractor, images: ClipImages
) -> TrainingFreeNetwork:
    side = manifest.tasks["segmentation"].resolution
    images.tower(images.whole_side(side))  # built now, so that no pass does
    channels = extractor.backbone.unet.config["block_out_channels"]
    return TrainingFreeNetwork(
        extractor.backbone,
        images,
        tap=free.tap,
        tap_channels=channels[-1] if free.tap == "mid" else channels[-1 - int(free.tap.removeprefix("up_"))],
        diffusion_weight=free.diffusion_weight,
        clip_weight=free.clip_weight,
        refined_by=free.refined_by,
        dense_side=side,
    )


def _load_names(part: TextPart | None, folder: Path, dtype: torch.dtype) -> TextEncoder | OpenClipNames | None:
    if part is None:
        return None
    return (
        load_text(part, folder, dtype) if part.loader == "transformers" else load_open_clip_names(part, folder, dtype)
    )


def _load_segmentation(folder: Path, manifest: Manifest, encoder: Encoder) -> SegmentationHead | TrainingFreeHead:
    part = manifest.components.segmentation
    if part is not None:
        head = SegmentationHead(manifest.dimension)
        fill(head, part.source, folder)
        head.eval().requires_grad_(False)  # stays on the CPU, in float32
        return head
    if manifest.training_free is None:
        raise BundleError(f"the bundle '{manifest.name}' has neither a segmentation head nor `training_free`")
    return TrainingFreeHead(encoder.encode_texts(BACKGROUNDS).pooled.numpy(), manifest.training_free.temperature)


def _info(manifest: Manifest, encoder: Encoder, digest: str, *, device: str, dtype: str, parameters: int) -> BundleInfo:
    return BundleInfo(
        name=manifest.name,
        fingerprint=digest,
        dimension=manifest.dimension,
        device=device,
        dtype=dtype,
        captioner="none" if manifest.components.captioner is None else "blip",
        tasks={
            name: TaskProfile(**{**task.model_dump(), "features": manifest.compared(name)})
            for name, task in manifest.tasks.items()
        },
        manifest=manifest.model_dump(mode="json"),
        parameters=parameters,
        visual_dimension=encoder.visual_dimension,
        features=FEATURES,
        is_training_free=manifest.training_free is not None,
    )


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


def _optimize(extractor: FrozenExtractor, network: nn.Module, dtype: torch.dtype) -> None:
    # Bit-equal replacements only: the backbone's taps must agree with the library's pipeline to 1e-6.
    pack_convolutions(extractor.backbone)
    if isinstance(network, TrainedNetwork):
        optimize_convolutions(network.uhead)
    if isinstance(extractor.expert, TimmExpert) and extractor.expert.patch_size == 1:
        optimize_convolutions(extractor.expert.network, torch.zeros(1, 3, 64, 64, dtype=dtype))
