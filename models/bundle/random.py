"""Stable Diffusion bundles of random weights: every file as diffusers, transformers, open_clip and timm publish it."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import timm
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPTextConfig,
    CLIPTextModel,
)

from models.bundle.architectures import SCHEDULER, Architecture
from models.bundle.files import sha256
from models.bundle.manifest import (
    SCHEMA_VERSION,
    CaptionerPart,
    ClipPart,
    Components,
    ExpertPart,
    Manifest,
    Part,
    PathSource,
    PooledFeature,
    TaskConfig,
    TextPart,
    TrainingFree,
    UHeadPart,
    UnetPart,
    VaePart,
)
from models.bundle.tensors import CLIP_TEXT_PREFIX, VAE_OLD_ATTENTION, stored_name
from models.clip import OPEN_CLIP_CONFIG
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead, UHeadConfig, UHeadScale
from models.text import MINILM_PACKAGE, package_folder

_CLIP_TOKENS = 77  # as every CLIP text model
_BLIP_SPECIAL_TOKENS = {"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]}
_BLIP_TOKENS = 30522  # of BERT; BLIP adds two
_WEIGHTS = "diffusion_pytorch_model.fp16.safetensors"


def write_stable_diffusion(folder: Path, architecture: Architecture, *, name: str, has_heads: bool) -> Manifest:
    """Writes the parts of a bundle and returns its manifest.

    Args:
        folder: empty, or new.
        architecture: shapes of the parts.
        name: of the bundle.
        has_heads: whether it has an expert and the paper's U-head, or else is training-free.
    """
    vae = write_vae(folder / "vae", architecture.vae)
    UNet2DConditionModel.from_config(architecture.unet).half().save_pretrained(folder / "unet", variant="fp16")
    DDPMScheduler.from_config(SCHEDULER).save_pretrained(folder / "scheduler")
    clip, dimension = write_clip(folder / "clip", architecture.clip, architecture.clip_shape)
    side, mask_side, caption_side = architecture.resolutions
    compared: dict[PooledFeature, float] = {"semantic": 0.5, "visual": 0.5} if has_heads else {"visual": 1.0}
    of_whole_images = TaskConfig(resolution=side, timestep=200, templates=("a photo of a {}.",), features=compared)
    parts: dict[str, Any] = {
        "vae": vae,
        "unet": UnetPart(source=_source(folder / "unet")),
        "scheduler": Part(source=_source(folder / "scheduler")),
        "text": write_clip_text(folder, **architecture.text),
        "captioner": write_blip(folder / "blip", architecture, caption_side),
        "clip": clip,
    }
    if has_heads:
        parts |= _write_heads(folder, architecture, dimension)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        licence="Apache-2.0",
        attribution="random weights",
        dimension=dimension,
        noise_seed=0,
        taps=("mid", "up_0", "up_1", "up_2", "up_3") if has_heads else ("up_1", "up_2"),
        tasks={
            "retrieval": of_whole_images,
            "segmentation": TaskConfig(resolution=mask_side, timestep=10, templates=("a photo of a {}.",)),
            "fewshot": of_whole_images,
        },
        components=Components(**parts),
        training_free=None
        if has_heads
        else TrainingFree(tap="up_1", diffusion_weight=1.0, clip_weight=1.0, refined_by="up_2"),
    )


def write_vae(folder: Path, config: dict[str, Any]) -> VaePart:
    """Writes a VAE under the tensor names that Stable Diffusion's files keep from before diffusers 0.17."""
    AutoencoderKL.from_config(config).half().save_pretrained(folder, variant="fp16")
    tensors = load_file(folder / _WEIGHTS)
    save_file({stored_name(VAE_OLD_ATTENTION, name): tensor for name, tensor in tensors.items()}, folder / _WEIGHTS)
    return VaePart(source=_source(folder), key_map=VAE_OLD_ATTENTION)


def write_clip_text(
    folder: Path, *, width: int, layers: int, heads: int, activation: str = "quick_gelu", projection: int | None = None
) -> TextPart:
    """Writes a CLIP text model as Stable Diffusion lays it out: `text_encoder/` and `tokenizer/`.

    `width` is C of the conditioning states.
    """
    _write_clip_tokenizer(folder / "tokenizer")
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        max_position_embeddings=_CLIP_TOKENS,
        projection_dim=projection or width,
        bos_token_id=49406,  # of the vocabulary below
        eos_token_id=49407,
        pad_token_id=1,
    )
    model = CLIPTextModel(config)
    config.architectures = ["CLIPTextModel"]
    config.save_pretrained(folder / "text_encoder")
    tensors = {stored_name(CLIP_TEXT_PREFIX, name): tensor for name, tensor in model.state_dict().items()}
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, folder / "text_encoder" / "model.fp16.safetensors")
    written = [file for name in ("text_encoder", "tokenizer") for file in sorted((folder / name).iterdir())]
    files = {file.relative_to(folder).as_posix(): sha256(file) for file in written}
    return TextPart(source=PathSource(path=".", files=files), max_length=_CLIP_TOKENS, key_map=CLIP_TEXT_PREFIX)


def write_blip(folder: Path, architecture: Architecture, resolution: int) -> CaptionerPart:
    """Writes BLIP as transformers lays it out."""
    text = BlipTextConfig(
        **architecture.blip_text,
        encoder_hidden_size=architecture.blip_vision["hidden_size"],
        vocab_size=_BLIP_TOKENS + 2,
        bos_token_id=_BLIP_TOKENS,
    )
    vision = BlipVisionConfig(**architecture.blip_vision)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)  # the published model has none
    bert = package_folder(MINILM_PACKAGE) / "model"
    tokenizer = BertTokenizer.from_pretrained(bert, local_files_only=True)
    tokenizer.add_special_tokens(_BLIP_SPECIAL_TOKENS)
    tokenizer.save_pretrained(folder)
    # Published with the others, and no longer written by transformers.
    shutil.copy(bert / "vocab.txt", folder)
    (folder / "special_tokens_map.json").write_text(json.dumps(_BLIP_SPECIAL_TOKENS))
    side = architecture.blip_vision["image_size"]
    BlipImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    return CaptionerPart(source=_source(folder), resolution=resolution, max_tokens=10)


def write_clip(folder: Path, name: str, shape: dict[str, Any] | None) -> tuple[ClipPart, int]:
    """Writes both towers of CLIP in one file, as open_clip does, and returns D, the length of its embeddings."""
    folder.mkdir(parents=True)
    if shape is not None:
        (folder / OPEN_CLIP_CONFIG).write_text(
            json.dumps(
                {
                    "model_cfg": shape,
                    "preprocess_cfg": {
                        "mean": open_clip.OPENAI_DATASET_MEAN,
                        "std": open_clip.OPENAI_DATASET_STD,
                        "interpolation": "bicubic",
                    },
                },
                indent=2,
            )
        )
    model = open_clip.create_model(name if shape is None else f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return ClipPart(source=_source(folder), model=name), int(model.visual.output_dim)


def _write_heads(folder: Path, architecture: Architecture, dimension: int) -> dict[str, Any]:
    network = timm.create_model(architecture.expert, pretrained=False)
    (folder / "expert").mkdir()
    save_file(network.state_dict(), folder / "expert" / "model.safetensors")
    expert = ExpertPart(
        source=_source(folder / "expert"), loader="timm", model=architecture.expert, levels=architecture.expert_levels
    )
    shape = paper_uhead(architecture.unet["block_out_channels"], architecture.widths, expert=network.num_features)
    parts: dict[str, Any] = {"expert": expert}
    for name, module in (("uhead", UHead(shape, dimension)), ("segmentation", SegmentationHead(dimension))):
        (folder / name).mkdir()
        halves = {key: tensor.detach().half().contiguous() for key, tensor in module.state_dict().items()}
        save_file(halves, folder / name / f"{name}.safetensors")
        source = _source(folder / name)
        parts[name] = UHeadPart(source=source, **shape.model_dump()) if name == "uhead" else Part(source=source)
    return parts


def paper_uhead(unet_channels: tuple[int, ...], widths: tuple[int, ...], *, expert: int) -> UHeadConfig:
    """Returns the paper's U-head for a U-Net of these `block_out_channels` and an expert with maps of these channels.

    Without an expert, for Stable Diffusion 1.5, its fusion and attention pooling have 8,464,128 parameters.
    """
    finest, fine, coarse, coarsest = unet_channels
    taps = ({"up_2": fine, "up_3": finest}, {"up_1": coarse}, {"up_0": coarsest}, {"mid": coarsest})
    scales = tuple(
        UHeadScale(stride=8 << number, taps=names, expert=expert, width=width)
        for number, (names, width) in enumerate(zip(taps, widths, strict=True))
    )
    return UHeadConfig(scales=scales, pooling="attention", groups=32)


def _source(folder: Path) -> PathSource:
    """Every file of a folder of the bundle."""
    return PathSource(path=folder.name, files={file.name: sha256(file) for file in sorted(folder.iterdir())})


def _write_clip_tokenizer(folder: Path) -> None:
    """Writes CLIP's own vocabulary, from open_clip's package, in the files that transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    start, end = "<|startoftext|>", "<|endoftext|>"
    source = open_clip.tokenizer.SimpleTokenizer()
    renamed = {"<start_of_text>": start, "<end_of_text>": end}  # open_clip's names for CLIP's two tokens
    vocabulary = {renamed.get(token, token): number for token, number in source.encoder.items()}
    merges = ["#version: 0.2", *(" ".join(pair) for pair in source.bpe_ranks)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    tokens = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    config = {"tokenizer_class": "CLIPTokenizer", **tokens, "model_max_length": _CLIP_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
