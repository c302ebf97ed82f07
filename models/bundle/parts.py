"""Loaders of a bundle's parts: each reads the files that its source lists, checked, strictly and without code."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, BlipConfig, BlipForConditionalGeneration, BlipProcessor, CLIPTextModel

from models.acceleration.fusion import fuse_batch_norms
from models.backbone import build_tiny_encoder, build_truncated_unet, build_vae_encoder
from models.bundle.files import only_file, read_json, verified
from models.bundle.manifest import (
    AnySource,
    CaptionerPart,
    ClipPart,
    ExpertPart,
    Part,
    PosteriorsPart,
    TextPart,
    UnetPart,
    VaePart,
)
from models.bundle.tensors import read_tensors
from models.clip import OPEN_CLIP_CONFIG, ClipImages, build_open_clip, tokenizer_of
from models.errors import BundleError
from models.expert import (
    OpenClipExpert,
    TimmExpert,
    adapt,
    adapter_tensors,
    classifier_names,
    merge_adapters,
    read_lite0_package,
    timm_classifier,
)
from models.heads.posteriors import ClassPosteriors, ExpertClassifier
from models.text import BlipCaptioner, OpenClipNames, TextEncoder

_FLOAT = torch.float32
# Constants that older releases of transformers stored with the weights.
_POSITION_IDS = {"embeddings.position_ids"}
_BLIP_POSITION_IDS = {"text_decoder.bert.embeddings.position_ids"}


def load_vae(part: VaePart, bundle: Path, dtype: torch.dtype = _FLOAT) -> AutoencoderKL | AutoencoderTiny:
    """Loads the VAE's encoder. Raises as `load_bundle`."""
    if part.loader == "tiny":
        return _load_cut(AutoencoderTiny, part, bundle, build_tiny_encoder, dtype)
    return _load_cut(AutoencoderKL, part, bundle, build_vae_encoder, dtype)


def load_unet(part: UnetPart, bundle: Path, taps: tuple[str, ...], dtype: torch.dtype = _FLOAT) -> UNet2DConditionModel:
    """Loads the U-Net up to its last tap. Raises as `load_bundle`."""
    return _load_cut(
        UNet2DConditionModel, part, bundle, lambda config: build_truncated_unet(config, taps), dtype, part.config
    )


def load_text(part: TextPart, bundle: Path, dtype: torch.dtype = _FLOAT) -> TextEncoder:
    """Loads a transformers text model with its tokenizer. Raises as `load_bundle`."""
    folder = verified(part.source, bundle)
    file = only_file(part.source, folder, ".safetensors")
    tokenizer = only_file(part.source, folder, "tokenizer_config.json").parent
    config = AutoConfig.from_pretrained(file.parent, local_files_only=True)
    kind = CLIPTextModel._from_config if config.model_type == "clip_text_model" else AutoModel.from_config
    model = kind(config).to(dtype).eval()
    model.load_state_dict(
        read_tensors(file, model.state_dict(), ignored=_POSITION_IDS, key_map=part.key_map, dtype=dtype)
    )
    return TextEncoder(tokenizer, model, max_length=part.max_length, zero_padding=part.zero_padding)


def load_captioner(part: CaptionerPart, bundle: Path, device: torch.device, dtype: torch.dtype) -> BlipCaptioner:
    """Loads BLIP, placed. Raises as `load_bundle`."""
    folder = verified(part.source, bundle)
    model = BlipForConditionalGeneration(BlipConfig.from_pretrained(folder, local_files_only=True)).to(dtype)
    file = only_file(part.source, folder, ".safetensors")
    tied = {name for name in model.state_dict() if name.startswith("text_decoder.cls.predictions.decoder")}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    # Not strict, because tied weights come from the embeddings; `read_tensors` has checked all others.
    model.load_state_dict(read_tensors(file, wanted, ignored=tied | _BLIP_POSITION_IDS, dtype=dtype), strict=False)
    model.tie_weights()
    model.to(device).eval().requires_grad_(False)
    processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
    return BlipCaptioner(model, processor, prefix=part.prefix, max_tokens=part.max_tokens, resolution=part.resolution)


def load_clip(part: ClipPart, bundle: Path, dtype: torch.dtype = _FLOAT) -> tuple[ClipImages, OpenClipNames]:
    """Loads both towers of an open_clip file. Raises as `load_bundle`."""
    file, model, config = _open_clip(part.model, part.source, bundle)
    _assign(model, read_tensors(file, model.state_dict(), dtype=dtype))
    images = _images(model.visual)
    return images, OpenClipNames(model, tokenizer_of(part.model, config))


def load_open_clip_names(part: TextPart | ClipPart, bundle: Path, dtype: torch.dtype = _FLOAT) -> OpenClipNames:
    """Loads the text tower of an open_clip file, which may hold the image tower too. Raises as `load_bundle`."""
    file, model, config = _open_clip(part.model, part.source, bundle)
    tower = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("visual.")}
    read = read_tensors(file, tower, ignored=set(model.state_dict()) - set(tower), dtype=dtype)
    names = OpenClipNames(model, tokenizer_of(part.model, config))
    _assign(names.model, read)
    return names


def load_expert(part: ExpertPart, bundle: Path) -> TimmExpert | OpenClipExpert:
    """Loads the expert without adapters. Raises as `load_bundle`."""
    if part.loader == "open_clip":
        file, model, _ = _open_clip(part.model, part.source, bundle)
        wanted = {f"visual.{name}": tensor for name, tensor in model.visual.state_dict().items()}
        read = read_tensors(file, wanted, ignored=set(model.state_dict()) - set(wanted))
        _assign(model.visual, {name.removeprefix("visual."): tensor for name, tensor in read.items()})
        return OpenClipExpert(_images(model.visual), part.levels, part.resolution)
    expert = TimmExpert(part.model, part.levels, part.resolution)
    own = expert.network.state_dict()
    if part.key_map == "efficientnet-lite0-package":
        # The package names the tensors in its own way.
        expert.network.load_state_dict(read_lite0_package(source_file(part.source, bundle, ".pth"), own))
        return expert
    if part.key_map is not None:
        raise BundleError(f"no key map '{part.key_map}'")
    names, ignored = expert.published_names()
    file = source_file(part.source, bundle, ".safetensors")
    read = read_tensors(file, {names[name]: tensor for name, tensor in own.items()}, ignored=ignored)
    expert.network.load_state_dict({name: read[names[name]] for name in own})
    return expert


def load_classifier(part: ExpertPart, bundle: Path) -> ExpertClassifier:
    """Loads the end of the expert's own network, batch norm fused. Raises as `load_bundle`."""
    if part.loader != "timm":
        raise BundleError(f"class posteriors need an expert of timm, not of {part.loader}")
    classifier = timm_classifier(part.model).eval()
    names, own = classifier_names(classifier), classifier.state_dict()
    wanted = {names[name]: tensor for name, tensor in own.items()}
    if part.key_map == "efficientnet-lite0-package":
        read = read_lite0_package(source_file(part.source, bundle, ".pth"), wanted)
    else:
        with torch.device("meta"):  # names only
            whole = set(timm.create_model(part.model, pretrained=False).state_dict())
        file = source_file(part.source, bundle, ".safetensors")
        read = read_tensors(file, wanted, ignored=whole - set(wanted))
    classifier.load_state_dict({name: read[names[name]] for name in own})
    classifier.requires_grad_(False)
    channels = own["embed.0.weight"].shape[1]
    fuse_batch_norms(classifier.embed, torch.zeros(1, channels, 8, 8))
    return classifier


def load_posteriors(part: PosteriorsPart, dimension: int, bundle: Path) -> ClassPosteriors:
    """Loads what was trained and measured of class posteriors. Raises as `load_bundle`."""
    posteriors = ClassPosteriors(part, dimension)
    fill(posteriors, part.source, bundle)
    return posteriors


def load_fused_expert(part: ExpertPart, adapters: Part | None, bundle: Path) -> TimmExpert | OpenClipExpert:
    """Loads the expert as it is served: adapters merged, batch norms fused. Raises as `load_bundle`."""
    expert = load_expert(part, bundle).eval()
    if adapters is not None:
        load_adapters(expert, source_file(adapters.source, bundle, ".safetensors"))
        merge_adapters(expert)
    if isinstance(expert, TimmExpert) and expert.patch_size == 1:
        # After the merge: fusing scales the weights that the adapters were trained on.
        fuse_batch_norms(expert.network, torch.zeros(1, 3, 64, 64))
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


def source_file(source: AnySource, bundle: Path, suffix: str) -> Path:
    """Returns the source's one file of a kind, checked. Raises as `load_bundle`."""
    return only_file(source, verified(source, bundle), suffix)


def fill(module: nn.Module, source: AnySource, bundle: Path) -> None:
    """Loads a module's tensors from the source's one safetensors file. Raises as `load_bundle`."""
    module.load_state_dict(read_tensors(source_file(source, bundle, ".safetensors"), module.state_dict()))


def _load_cut(
    kind: Any,
    part: Part,
    bundle: Path,
    build: Callable[[Mapping[str, Any]], Any],
    dtype: torch.dtype,
    config_source: AnySource | None = None,
) -> Any:
    """Loads a truncated diffusers model; the file may hold the tensors of the whole one, and no others."""
    folder = verified(part.source, bundle)
    beside = folder if config_source is None else verified(config_source, bundle)
    config = read_json(only_file(config_source or part.source, beside, ".json"))
    with torch.device("meta"):  # names only: the whole U-Net is never allocated
        whole = kind.from_config(config).state_dict()
    cut = build(config)
    wanted = cut.state_dict()
    file = only_file(part.source, folder, ".safetensors")
    tensors = read_tensors(file, wanted, ignored=set(whole) - set(wanted), key_map=part.key_map, dtype=dtype)
    cut.load_state_dict(tensors, assign=True)  # the model is still on `meta`
    return cut


def _open_clip(name: str, source: AnySource, bundle: Path) -> tuple[Path, Any, Path | None]:
    """The weights file, the model on `meta`, and the folder of `open_clip_config.json`, if that is listed."""
    folder = verified(source, bundle)
    file = only_file(source, folder, ".safetensors")
    with safe_open(file, framework="pt") as opened:
        if any(key.startswith("vision_model.") for key in opened.keys()):  # noqa: SIM118 - not a dict
            raise BundleError(
                f"{file} holds CLIP under transformers' names: name open_clip's file, open_clip_model.safetensors"
            )
    config = folder if OPEN_CLIP_CONFIG in source.files else None
    return file, build_open_clip(name, config), config


def _assign(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fills a module on `meta`, and the causal masks that open_clip stores in no file."""
    module.load_state_dict(tensors, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], torch.full(buffer.shape, float("-inf")).triu(1))


def _images(visual: Any) -> ClipImages:
    config = visual.preprocess_cfg
    return ClipImages(visual, config["mean"], config["std"], is_bicubic=config["interpolation"] == "bicubic")
