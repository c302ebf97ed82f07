"""open_clip's files as they are published: both towers from one file, each equal to open_clip's own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from models.bundle.files import sha256
from models.bundle.manifest import ClipPart, ExpertPart, PathSource, TextPart
from models.bundle.parts import load_clip, load_expert, load_open_clip_names
from models.clip import OPEN_CLIP_CONFIG, build_open_clip
from models.errors import BundleError, TensorMismatchError

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
FILE = "open_clip_model.safetensors"
NAMES = ["a fish", "a photo of a house by the sea"]


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "test-tiny", SMALL)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "test-tiny-quickgelu", {**SMALL, "quick_gelu": True})


def _open_clip(name: str = "test-tiny-quickgelu") -> Any:
    torch.manual_seed(0)
    model = open_clip.create_model(name, load_weights=False).eval()
    for parameter in model.parameters():  # zero biases would hide a wrong activation
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def _source(folder: Path, tensors: dict[str, torch.Tensor], *others: str) -> PathSource:
    save_file(tensors, folder / FILE)
    return PathSource(path=".", files={name: sha256(folder / name) for name in (FILE, *others)})


def _pixels(side: int = 64) -> torch.Tensor:
    return torch.rand((2, 3, side, side), generator=torch.Generator().manual_seed(0)) * 2 - 1


def _normalized(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    return ((pixels + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def _is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


@torch.no_grad()
def test_both_towers_come_from_one_published_file(tmp_path: Path) -> None:
    model = _open_clip()
    part = ClipPart(source=_source(tmp_path, model.state_dict()), model="test-tiny-quickgelu")
    images, names = load_clip(part, tmp_path)
    images.eval(), names.eval()
    embeddings, patches = images(_pixels())
    normalized = _normalized(_pixels(), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert _is_close(embeddings, model.encode_image(normalized))
    assert patches.shape == (2, 32, 4, 4)
    tokens = open_clip.get_tokenizer("test-tiny")(NAMES)
    assert _is_close(names.embeddings(NAMES), model.encode_text(tokens, normalize=True))
    assert not [name for name in names.state_dict() if "visual" in name]


@torch.no_grad()
def test_the_quick_gelu_of_openais_weights_matters(tmp_path: Path) -> None:
    source = _source(tmp_path, _open_clip().state_dict())
    quick, plain = (
        load_clip(ClipPart(source=source, model=name), tmp_path)[0].eval()(_pixels())[0]
        for name in ("test-tiny-quickgelu", "test-tiny")
    )
    assert (quick - plain).abs().max() > 1e-3 * quick.abs().max(), "the wrong one loads without an error"


def test_openais_model_is_the_one_with_quick_gelu() -> None:
    visual: Any = build_open_clip("ViT-L-14-quickgelu", None).visual
    assert type(visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert visual.preprocess_cfg["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert visual.preprocess_cfg["std"] == open_clip.OPENAI_DATASET_STD


def test_weights_of_unknown_normalisation_need_their_config() -> None:
    # LAION's weights of this shape were trained with 0.5, OpenAI's with other figures.
    with pytest.raises(BundleError, match=rf"list {OPEN_CLIP_CONFIG} among its files"):
        build_open_clip("ViT-L-14", None)


@torch.no_grad()
def test_the_config_beside_the_weights_gives_shape_and_normalisation(tmp_path: Path) -> None:
    model = _open_clip()
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}
    config = {"model_cfg": {**SMALL, "quick_gelu": True}, "preprocess_cfg": preprocess}
    (tmp_path / OPEN_CLIP_CONFIG).write_text(json.dumps(config))
    source = _source(tmp_path, model.state_dict(), OPEN_CLIP_CONFIG)
    expected = model.encode_image(_normalized(_pixels(), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    for name in ("a shape of its own", "test-tiny-quickgelu"):
        images, names = load_clip(ClipPart(source=source, model=name), tmp_path)
        assert _is_close(images.eval()(_pixels())[0], expected), name
        assert names.embeddings(NAMES).shape == (2, 32)
        assert not images.is_bicubic


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path, _open_clip().state_dict())
    with pytest.raises(BundleError, match=f"no model 'ViT-Q', and no {OPEN_CLIP_CONFIG}"):
        load_clip(ClipPart(source=source, model="ViT-Q"), tmp_path)


@torch.no_grad()
def test_names_alone_read_the_text_tower(tmp_path: Path) -> None:
    model = _open_clip()
    part = TextPart(source=_source(tmp_path, model.state_dict()), loader="open_clip", model="test-tiny-quickgelu")
    tokens = open_clip.get_tokenizer("test-tiny")(NAMES)
    expected = model.encode_text(tokens, normalize=True)
    assert _is_close(load_open_clip_names(part, tmp_path).embeddings(NAMES), expected)


@pytest.mark.parametrize(("resolution", "cells"), [(None, 4), (128, 8)], ids=["own size", "128 px"])
@torch.no_grad()
def test_an_expert_reads_the_image_tower(tmp_path: Path, resolution: int | None, cells: int) -> None:
    model = _open_clip()
    source = _source(tmp_path, model.state_dict())
    part = ExpertPart(
        source=source, loader="open_clip", model="test-tiny-quickgelu", levels=(0, 2), resolution=resolution
    )
    maps = load_expert(part, tmp_path).eval()(_pixels(16 * cells))
    own = open_clip.create_model("test-tiny-quickgelu", load_weights=False, force_image_size=16 * cells).eval()
    tensors = dict(model.state_dict())
    open_clip.model.resize_pos_embed(tensors, own)
    own.load_state_dict(tensors)
    normalized = _normalized(_pixels(16 * cells), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    expected = own.visual.forward_intermediates(normalized, indices=[0, 2], intermediates_only=True)
    assert [tuple(level.shape) for level in maps] == [(2, 64, cells, cells)] * 2
    for level, other in zip(maps, expected["image_intermediates"], strict=True):
        assert _is_close(level, other)


@torch.no_grad()
def test_views_are_resized_as_open_clip_resizes_them(tmp_path: Path) -> None:
    model = _open_clip()
    images, _ = load_clip(ClipPart(source=_source(tmp_path, model.state_dict()), model="test-tiny-quickgelu"), tmp_path)
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(size=64), is_train=False)
    ramp = torch.linspace(0, 255, 96 * 96).view(96, 96).byte()
    levels = torch.stack([ramp, ramp.T, ramp.flip(0)], dim=2)
    expected = model.encode_image(transform(Image.fromarray(levels.numpy()))[None])
    pixels = levels.permute(2, 0, 1)[None] / 127.5 - 1
    found = images.eval()(pixels)[0]
    assert torch.cosine_similarity(found, expected).min() > 1 - 1e-3  # Pillow rounds to whole levels


@torch.no_grad()
def test_patches_are_values_without_mixing(tmp_path: Path) -> None:
    model = _open_clip()
    images, _ = load_clip(ClipPart(source=_source(tmp_path, model.state_dict()), model="test-tiny-quickgelu"), tmp_path)
    normalized = _normalized(_pixels(), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    tokens = model.visual.forward_intermediates(
        normalized, indices=[1], intermediates_only=True, output_fmt="NLC", output_extra_tokens=False
    )["image_intermediates"][0]
    block = model.visual.transformer.resblocks[-1]
    # The library's own attention over one token is its value, projected: the softmax of one number is one.
    alone = block.ln_1(tokens).flatten(0, 1)[:, None]
    values = block.attn(alone, alone, alone, need_weights=False)[0].view(2, 16, 64)
    expected = (model.visual.ln_post(values) @ model.visual.proj).transpose(1, 2).reshape(2, 32, 4, 4)
    assert _is_close(images.eval()(_pixels())[1], expected)
    assert images.patches(_pixels(), 96).shape == (2, 32, 6, 6)


@pytest.mark.parametrize(
    ("remove", "add", "message"),
    [
        ("visual.proj", None, r"lacks the tensor 'visual\.proj'"),
        ("text_projection", None, "lacks the tensor 'text_projection'"),
        (None, "stray", "unknown tensor 'stray'"),
    ],
    ids=["image tower", "text tower", "stray"],
)
def test_both_towers_are_strict(tmp_path: Path, remove: str | None, add: str | None, message: str) -> None:
    tensors = dict(_open_clip().state_dict())
    if remove:
        del tensors[remove]
    if add:
        tensors[add] = torch.zeros(1)
    with pytest.raises(TensorMismatchError, match=message):
        load_clip(ClipPart(source=_source(tmp_path, tensors), model="test-tiny-quickgelu"), tmp_path)


def test_transformers_layout_is_refused_with_advice(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**size, image_size=32, patch_size=16, projection_dim=32)
    config = CLIPConfig(text_config=CLIPTextConfig(**size).to_dict(), vision_config=vision.to_dict())
    CLIPModel(config).save_pretrained(tmp_path)
    source = PathSource(path=".", files={"model.safetensors": sha256(tmp_path / "model.safetensors")})
    with pytest.raises(BundleError, match=r"name open_clip's file, open_clip_model\.safetensors"):
        load_clip(ClipPart(source=source, model="test-tiny"), tmp_path)


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (["open_clip_pytorch_model.bin"], r"pickles can run code and are not read"),
        (["ViT-L-14.pt"], r"pickles can run code and are not read"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "shards are not read"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "shards are not read"),
    ],
    ids=["bin", "pt", "shards", "old shards"],
)
def test_other_files_are_refused_with_advice(tmp_path: Path, files: list[str], advice: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"weights")
    source = PathSource(path=".", files={name: sha256(tmp_path / name) for name in files})
    with pytest.raises(BundleError, match=advice):
        load_clip(ClipPart(source=source, model="test-tiny"), tmp_path)
