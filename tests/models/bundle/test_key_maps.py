"""Files of older releases under their own tensor names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.files import sha256
from models.bundle.tensors import CLIP_TEXT_PREFIX, VAE_OLD_ATTENTION, stored_name
from models.errors import BundleError

WEIGHTS = "diffusion_pytorch_model.safetensors"
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize(
    ("key_map", "name", "stored"),
    [
        (None, "encoder.conv_in.weight", "encoder.conv_in.weight"),
        (CLIP_TEXT_PREFIX, "embeddings.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        (VAE_OLD_ATTENTION, "encoder.conv_in.weight", "encoder.conv_in.weight"),
        (
            VAE_OLD_ATTENTION,
            "encoder.mid_block.attentions.0.to_out.0.bias",
            "encoder.mid_block.attentions.0.proj_attn.bias",
        ),
        (
            VAE_OLD_ATTENTION,
            "encoder.mid_block.attentions.0.group_norm.bias",
            "encoder.mid_block.attentions.0.group_norm.bias",
        ),
    ],
)
def test_names(key_map: str | None, name: str, stored: str) -> None:
    assert stored_name(key_map, name) == stored


def test_an_unknown_map_is_refused() -> None:
    with pytest.raises(BundleError, match="no key map 'other'"):
        stored_name("other", "x")


@pytest.mark.parametrize("as_kernels", [False, True], ids=["matrices", "1×1 kernels"])
def test_a_vae_in_the_old_layout_gives_the_same_latents(
    tiny_copy: Path, tiny: LoadedBundle, *, as_kernels: bool
) -> None:
    file = tiny_copy / "vae" / WEIGHTS
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(file).items():
        for new, old in OLD.items():
            if f"attentions.0.{new}." in name:
                name = name.replace(new, old)
                tensor = tensor[:, :, None, None].contiguous() if as_kernels and tensor.ndim == 2 else tensor
        renamed[name] = tensor
    save_file(renamed, file)
    fields = json.loads((tiny_copy / "bundle.json").read_text())
    fields["components"]["vae"]["key_map"] = VAE_OLD_ATTENTION
    fields["components"]["vae"]["source"]["files"][WEIGHTS] = sha256(file)
    (tiny_copy / "bundle.json").write_text(json.dumps(fields))
    loaded = load_bundle(tiny_copy, device="cpu")
    pixels = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = loaded.encoder.extractor.backbone.latents(pixels)
        assert torch.equal(latents, tiny.encoder.extractor.backbone.latents(pixels))
