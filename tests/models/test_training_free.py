"""A bundle of published parts without heads, of random weights: the three features, and masks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from models.backbone import build_truncated_unet
from models.bundle.architectures import TINY_UNET
from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.pack import write_random
from models.encoder import Encoder
from models.errors import BundleError
from models.heads.training_free import BACKGROUNDS, TrainingFreeHead
from models.training_free import SelfAttention, TrainingFreeNetwork
from models.types import ImageBatch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-sd")
    write_random(folder, arch="tiny-sd", seed=0)
    return folder


@pytest.fixture(scope="module")
def free(folder: Path) -> LoadedBundle:
    return load_bundle(folder, device="cpu")


def _batch(count: int = 2, side: int = 128) -> ImageBatch:
    pixels = torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return ImageBatch(pixels=pixels, timesteps=torch.full((count,), 200), captions=[None] * count)


def _network(bundle: LoadedBundle) -> TrainingFreeNetwork:
    assert isinstance(bundle.encoder.network, TrainingFreeNetwork)
    return bundle.encoder.network


def _own_clip(folder: Path) -> Any:
    return open_clip.create_model(f"local-dir:{folder / 'clip'}", load_weights=True).eval()


def test_the_bundle_says_what_it_has(free: LoadedBundle) -> None:
    assert free.info.is_training_free
    assert free.info.features == ("semantic", "visual", "dense")
    assert (free.info.dimension, free.info.visual_dimension) == (48, 64 + 48)
    assert free.info.captioner == "blip"


@torch.no_grad()
def test_semantic_is_clips_image_embedding(free: LoadedBundle, folder: Path) -> None:
    batch, own = _batch(), _own_clip(folder)
    view = F.interpolate(batch.pixels, size=(56, 56), mode="bicubic", antialias=True).clamp(-1, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    expected = own.encode_image(((view + 1) / 2 - mean) / std, normalize=True)
    found = free.encoder.encode_images(batch)
    assert (found.pooled - expected).abs().max() <= 1e-5
    texts = free.encoder.encode_texts(["a fish"]).pooled
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a fish"])
    assert (texts - own.encode_text(tokens, normalize=True)).abs().max() <= 1e-5


@torch.inference_mode()
def test_visual_joins_the_tap_and_clip(free: LoadedBundle) -> None:
    batch = _batch()
    found = free.encoder.encode_images(batch)
    tap = free.encoder.extractor(batch.pixels, batch.timesteps, batch.captions).taps["up_1"]
    halves = [F.normalize(tap.mean(dim=(2, 3)), dim=1), found.pooled]
    assert torch.allclose(found.visual, torch.cat(halves, dim=1) / 2**0.5, atol=1e-5)
    assert torch.allclose(found.visual.norm(dim=1), torch.ones(2), atol=1e-5)


@torch.inference_mode()
def test_dense_is_averaged_by_the_unets_self_attention(free: LoadedBundle) -> None:
    batch, network = _batch(), _network(free)
    found = free.encoder.encode_images(batch).dense
    states = free.encoder.extractor.conditioning(batch.pixels, batch.captions)
    network.backbone(batch.pixels, batch.timesteps, states)
    assert network.attention is not None
    probabilities, size = network.attention.probabilities()
    assert size == (8, 8)
    assert torch.allclose(probabilities.sum(dim=2), torch.ones(2, 64), atol=1e-5)
    patches = F.normalize(network.clip.patches(batch.pixels, 140), dim=1)  # 128 px to whole patches of 14
    cells = F.interpolate(patches, size=size, mode="bilinear").flatten(2)
    assert torch.allclose(found.flatten(2), cells @ probabilities.transpose(1, 2), atol=1e-5)


def test_a_small_image_needs_no_second_pass_of_clip(free: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free.encoder, "_is_recorded", False)
    monkeypatch.setattr(_network(free).clip, "patches", None)  # would be called
    dense = free.encoder.encode_images(_batch(side=64)).dense
    assert dense.shape == (2, 48, 4, 4)


@pytest.mark.parametrize("is_recorded", [False, True], ids=["network", "graph"])
def test_a_batch_without_dense_costs_neither_a_view_of_clip_nor_the_attention(
    free: LoadedBundle, is_recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = free.encoder.encode_images(_batch())
    network = _network(free)
    assert network.attention is not None
    monkeypatch.setattr(free.encoder, "_is_recorded", is_recorded)
    monkeypatch.setattr(network.clip, "patches", None)  # would be called
    monkeypatch.setattr(network.attention, "probabilities", None)
    found = free.encoder.encode_images(replace(_batch(), needs_dense=False))
    assert torch.allclose(found.pooled, whole.pooled, atol=1e-6)
    assert torch.allclose(found.visual, whole.visual, atol=1e-6)
    assert found.dense.shape == (2, 48, 0, 0)
    assert not network.attention._stored, "queries and keys are released"


@pytest.mark.parametrize("tap", ["mid", "up_1", "up_2", "up_3"])
@torch.no_grad()
def test_attention_equals_the_librarys_unfused_one(tap: str) -> None:
    torch.manual_seed(0)
    unet = build_truncated_unet({**TINY_UNET, "cross_attention_dim": 32, "attention_head_dim": 4}, ["up_3"])
    unet.to_empty(device="cpu")
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    hooked, inputs = SelfAttention(unet, tap), dict[str, torch.Tensor]()
    block = unet.mid_block if tap == "mid" else unet.up_blocks[int(tap[3:])]
    own = block.attentions[-1].transformer_blocks[-1].attn1
    own.register_forward_pre_hook(
        lambda _module, args, kwargs: inputs.update(states=(args or (kwargs["hidden_states"],))[0]), with_kwargs=True
    )
    unet.eval()(torch.randn(2, 4, 16, 16), torch.tensor([5, 200]), encoder_hidden_states=torch.randn(2, 7, 32))
    query, key = (own.head_to_batch_dim(layer(inputs["states"])) for layer in (own.to_q, own.to_k))
    expected = own.get_attention_scores(query, key).unflatten(0, (2, own.heads)).mean(dim=1)
    probabilities, size = hooked.probabilities()
    assert size[0] * size[1] == probabilities.shape[1]
    assert torch.allclose(probabilities, expected, atol=1e-6)


@pytest.mark.parametrize(("tap", "taps"), [("up_0", ["up_3"]), ("up_2", ["up_1"])], ids=["no attention", "cut away"])
def test_a_block_without_attention_is_refused(tap: str, taps: list[str]) -> None:
    with pytest.raises(BundleError, match=f"'{tap}' of this U-Net has no self-attention"):
        SelfAttention(build_truncated_unet(TINY_UNET, taps), tap)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_loads_in_each_precision(folder: Path, free: LoadedBundle, dtype: str) -> None:
    loaded = load_bundle(folder, device="cpu", dtype=dtype)
    exact, found = free.encoder.encode_images(_batch()), loaded.encoder.encode_images(_batch())
    for name in ("pooled", "visual", "dense"):
        one, other = getattr(exact, name), getattr(found, name)
        assert other.dtype == torch.float32
        assert torch.cosine_similarity(one, other, dim=1).min() > 0.99, name
    assert loaded.info.dtype == dtype


def test_recorded_passes_give_the_networks_features(free: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = free.encoder.encode_images(_batch())
    assert not any(isinstance(run, TrainingFreeNetwork) for run in free.encoder._graphs.values())
    monkeypatch.setattr(free.encoder, "_is_recorded", False)
    plain = free.encoder.encode_images(_batch())
    for name in ("pooled", "visual", "dense"):
        assert torch.allclose(getattr(recorded, name), getattr(plain, name), atol=1e-5), name


@pytest.mark.parametrize("most", [0, 10**9], ids=["large", "small"])
def test_large_networks_are_not_recorded_on_a_cpu(folder: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.bundle.build.LARGE_PARAMETERS", most)
    encoder: Encoder = load_bundle(folder, device="cpu").encoder
    assert encoder._is_recorded == (most > 0)
    names = {type(module).__name__ for module in encoder.extractor.backbone.modules()}
    assert ("PackedConvolution" in names) == (most > 0)


@torch.inference_mode()
def test_a_cell_is_the_name_it_resembles_or_background(free: LoadedBundle) -> None:
    names = free.encoder.encode_texts(["a fish", "a house"]).pooled.numpy()
    backgrounds = free.encoder.encode_texts(BACKGROUNDS).pooled.numpy()
    head = TrainingFreeHead(backgrounds, temperature=0.01)
    dense = np.stack([names[1], backgrounds[2], names[0], names[1]], axis=1).reshape(-1, 2, 2) * np.float32(3)
    probabilities = head.probabilities(dense, names)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    assert probabilities.argmax(axis=0).tolist() == [[2, 0], [1, 2]]


def test_a_background_that_is_asked_for_is_a_name() -> None:
    backgrounds = np.eye(4, dtype=np.float32)[:2]
    head = TrainingFreeHead(backgrounds, temperature=0.1)
    dense = np.tile(backgrounds[0][:, None, None], (1, 2, 2))
    assert head.probabilities(dense, np.eye(4, dtype=np.float32)[3:])[0].min() > 0.9
    assert head.probabilities(dense, backgrounds[:1])[1].min() > 0.9


def test_a_tap_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    text = (folder / "bundle.json").read_text()
    for name in folder.iterdir():
        if name.name != "bundle.json":
            (tmp_path / name.name).symlink_to(name)
    (tmp_path / "bundle.json").write_text(text.replace('"tap": "up_1"', '"tap": "mid"'))
    with pytest.raises(BundleError, match="`visual` of 'random-tiny-sd' needs the tap 'mid'"):
        load_bundle(tmp_path, device="cpu")


def test_the_published_layout_is_what_was_written(folder: Path) -> None:
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {
        "blip/config.json",
        "blip/model.safetensors",
        "blip/preprocessor_config.json",
        "blip/tokenizer_config.json",
        "clip/open_clip_model.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    } <= names
    keys = load_file(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").keys()
    assert "encoder.mid_block.attentions.0.query.weight" in keys
