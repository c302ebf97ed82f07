import torch
from diffusers import UNet2DConditionModel
from torch import nn

from models.acceleration.halves import compute_in_float32
from models.bundle.architectures import ARCHITECTURES


def test_half_precision_weights_give_what_the_same_values_in_float32_give() -> None:
    torch.manual_seed(0)
    half = UNet2DConditionModel.from_config(ARCHITECTURES["tiny-sd"].unet).to(torch.bfloat16).eval()
    whole = UNet2DConditionModel.from_config(ARCHITECTURES["tiny-sd"].unet).eval()
    whole.load_state_dict(half.state_dict())
    compute_in_float32(half)
    latents, states = torch.randn(2, 4, 16, 16), torch.randn(2, 77, whole.config["cross_attention_dim"])
    with torch.inference_mode():
        expected = whole(latents, torch.tensor([10, 200]), encoder_hidden_states=states).sample
        found = half(latents, torch.tensor([10, 200]), encoder_hidden_states=states).sample
    assert torch.equal(found, expected)
    layers = [layer for layer in half.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
