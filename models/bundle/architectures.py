"""Shapes of bundles of random weights: Stable Diffusion 1.5 and 2.1 with their companions, and small ones."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Shapes of a bundle's parts, as arguments of the libraries' own configurations.

    Attributes:
        clip: open_clip's model name.
        clip_shape: of a model that open_clip does not know.
        expert, expert_levels: timm's name of the expert beside trained heads, and the blocks whose maps it gives.
        widths: of the U-head's scales, from high to low resolution.
        resolutions: of retrieval and few-shot classification, of segmentation, and of the captioner, px.
    """

    vae: dict[str, Any]
    unet: dict[str, Any]
    text: dict[str, Any]
    blip_text: dict[str, Any]
    blip_vision: dict[str, Any]
    clip: str
    clip_shape: dict[str, Any] | None = None
    expert: str
    expert_levels: tuple[int, ...]
    widths: tuple[int, ...]
    resolutions: tuple[int, int, int]


SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
# What these leave out are the defaults of diffusers and transformers, which are Stable Diffusion 1's and BLIP-base's.
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
}
TINY_VAE: dict[str, Any] = {**_VAE, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 128}
_UNET = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}
TINY_UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 384,
}
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SD15 = Architecture(
    vae=_VAE,
    unet=_UNET,
    text={"width": 768, "layers": 12, "heads": 12},
    blip_text={"num_attention_heads": 12},
    blip_vision={"hidden_size": 768, "image_size": 384},
    clip="ViT-L-14-quickgelu",
    expert="vit_base_patch14_dinov2.lvd142m",
    expert_levels=(2, 5, 8, 11),
    widths=(256, 512, 768, 1024),
    resolutions=(256, 512, 256),
)
ARCHITECTURES = {
    "sd15": SD15,
    "sd21": replace(
        SD15,
        vae={**_VAE, "sample_size": 768},
        unet={
            **_UNET,
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        text={"width": 1024, "layers": 23, "heads": 16, "activation": "gelu", "projection": 512},
    ),
    "tiny-sd": Architecture(
        vae=TINY_VAE,
        unet={**TINY_UNET, "cross_attention_dim": 64, "attention_head_dim": 4},
        text={"width": 64, "layers": 2, "heads": 2},
        blip_text=_SMALL,
        blip_vision={**_SMALL, "image_size": 48},
        clip="tiny-quickgelu",
        clip_shape={
            "embed_dim": 48,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 56, "layers": 3, "width": 64, "head_width": 32, "patch_size": 14},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
        },
        expert="test_vit.r160_in1k",
        expert_levels=(1, 2, 3, 5),
        widths=(32, 32, 64, 64),
        resolutions=(64, 128, 32),
    ),
}
