"""The truncated backbone against whole, unmodified diffusers models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from models.backbone import add_noise, build_truncated_unet, fixed_noise
from models.bundle.architectures import ARCHITECTURES, TINY_UNET
from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.files import sha256
from models.bundle.pack import TAPS
from models.errors import BundleError

SD15 = ARCHITECTURES["sd15"].unet


def _hooked(unet: Any, taps: Sequence[str]) -> dict[str, torch.Tensor]:
    tapped: dict[str, torch.Tensor] = {}
    for tap in taps:
        block = unet.mid_block if tap == "mid" else unet.up_blocks[int(tap[3:])]
        block.register_forward_hook(lambda _m, _i, output, tap=tap: tapped.__setitem__(tap, output))
    return tapped


def _whole_unet(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return UNet2DConditionModel.from_config(dict(TINY_UNET)).eval().requires_grad_(False)


@pytest.mark.parametrize("timestep", [0, 50, 999])
def test_taps_equal_those_of_the_whole_library_pipeline(tiny: LoadedBundle, tiny_bundle: Path, timestep: int) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_bundle / "vae", torch_dtype=torch.float32).eval()
    vae.to(memory_format=torch.channels_last)
    unet = UNet2DConditionModel.from_pretrained(tiny_bundle / "unet", torch_dtype=torch.float32).eval()
    unet.to(memory_format=torch.channels_last)
    scheduler = DDPMScheduler.from_pretrained(tiny_bundle / "scheduler")
    pixels = torch.rand((2, 3, 128, 128), generator=torch.Generator().manual_seed(3)) * 2 - 1
    states = tiny.encoder.extractor.text.states(["", "a fish"]).clone()
    tapped = _hooked(unet, TAPS)
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0)).expand_as(latents)
        steps = torch.full((2,), timestep)
        unet(scheduler.add_noise(latents, noise, steps), steps, encoder_hidden_states=states)
        taps = tiny.encoder.extractor.backbone(pixels, steps, states)
    assert list(tapped) == ["mid", "up_0", "up_1", "up_2", "up_3"]
    for tap, expected in tapped.items():
        deviation = (taps[tap] - expected).abs().max() / expected.abs().max()
        assert deviation <= 1e-6, tap


@pytest.mark.parametrize("last", ["mid", "up_0", "up_1", "up_2", "up_3"])
@pytest.mark.parametrize("size", [(16, 16), (12, 20), (13, 17), (9, 8)], ids=str)
def test_truncation_changes_no_tap_at_any_latent_size(last: str, size: tuple[int, int]) -> None:
    taps = TAPS[: TAPS.index(last) + 1]
    whole = _whole_unet()
    cut = build_truncated_unet(TINY_UNET, taps)
    cut_names = cut.state_dict().keys()
    cut.load_state_dict({name: whole.state_dict()[name] for name in cut_names}, strict=True, assign=True)
    expected, found = _hooked(whole, taps), _hooked(cut, taps)
    latents = torch.randn((1, 4, *size), generator=torch.Generator().manual_seed(2))
    states = torch.randn((1, 16, 384), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole(latents, torch.tensor([50]), encoder_hidden_states=states)
        cut.eval()(latents, torch.tensor([50]), encoder_hidden_states=states)
    for tap in taps:
        assert torch.equal(expected[tap], found[tap]), tap


def test_a_time_step_a_sample_equals_one_at_a_time(tiny: LoadedBundle) -> None:
    backbone = tiny.encoder.extractor.backbone
    pixels = torch.rand((3, 3, 64, 64), generator=torch.Generator().manual_seed(5)) * 2 - 1
    steps = torch.tensor([0, 200, 900])
    states = tiny.encoder.extractor.text.states(["", "", ""]).clone()
    with torch.no_grad():
        together = backbone(pixels, steps, states)
        for slot in range(3):
            alone = backbone(pixels[slot, None], steps[slot, None], states[slot, None])
            for tap, features in alone.items():
                deviation = (together[tap][slot] - features[0]).abs().max() / features.abs().max()
                assert deviation < 1e-4, tap


def test_stable_diffusion_1_5_has_its_published_number_of_parameters() -> None:
    config = SD15
    with torch.device("meta"):
        whole = UNet2DConditionModel.from_config(dict(config))
    assert sum(p.numel() for p in whole.parameters()) == 859_520_964


@pytest.mark.parametrize(("last", "millions"), [("mid", 348.7), ("up_0", 511.0), ("up_1", 769.3), ("up_2", 840.7)])
def test_cut_stable_diffusion_holds_no_later_block(last: str, millions: float) -> None:
    cut = build_truncated_unet(SD15, [last])
    parameters = list(cut.parameters())
    assert all(p.is_meta for p in parameters)
    assert sum(p.numel() for p in parameters) / 1e6 == pytest.approx(millions, abs=0.05)


def _taesd(folder: Path) -> dict[str, Any]:
    """Writes a distilled VAE as diffusers lays it out; returns its part of a manifest."""
    torch.manual_seed(0)
    small = {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4}
    AutoencoderTiny(**small, num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1)).save_pretrained(folder)
    files = _sealed(folder)
    return {"loader": "tiny", "source": {"kind": "path", "path": folder.name, "files": files}}


def _with_profile(bundle: Path, component: str, part: dict[str, Any]) -> None:
    fields = json.loads((bundle / "bundle.json").read_text())
    fields["profiles"] = {"other": {"components": {component: part}}}
    (bundle / "bundle.json").write_text(json.dumps(fields))


@torch.no_grad()
def test_a_distilled_vae_gives_the_same_interface_its_own_latents(tiny_copy: Path, tiny: LoadedBundle) -> None:
    _with_profile(tiny_copy, "vae", _taesd(tiny_copy / "taesd"))
    loaded = load_bundle(tiny_copy, device="cpu", profile="other")
    vae = AutoencoderTiny.from_pretrained(tiny_copy / "taesd").eval()
    pixels = torch.rand((2, 3, 128, 128), generator=torch.Generator().manual_seed(3)) * 2 - 1
    expected = vae.encode(pixels).latents * vae.config.scaling_factor
    backbone = loaded.encoder.extractor.backbone
    assert (backbone.latents(pixels) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not [name for name in backbone.state_dict() if name.startswith("vae.decoder")]
    steps, states = torch.tensor([50, 50]), loaded.encoder.extractor.text.states(["", ""])
    shapes = {tap: features.shape for tap, features in backbone(pixels, steps, states).items()}
    plain = tiny.encoder.extractor.backbone(pixels, steps, states)
    assert shapes == {tap: features.shape for tap, features in plain.items()}
    assert loaded.info.fingerprint != tiny.info.fingerprint


@torch.no_grad()
def test_a_profile_replaces_the_unet(tiny_copy: Path, tiny: LoadedBundle) -> None:
    whole = _whole_unet(seed=7)
    whole.half().save_pretrained(tiny_copy / "cleaner")
    files = _sealed(tiny_copy / "cleaner")
    _with_profile(tiny_copy, "unet", {"source": {"kind": "path", "path": "cleaner", "files": files}})
    loaded = load_bundle(tiny_copy, device="cpu", profile="other")
    found = loaded.encoder.extractor.backbone.unet.state_dict()["mid_block.resnets.0.conv1.conv.weight"]
    assert torch.equal(found, whole.state_dict()["mid_block.resnets.0.conv1.weight"].float())
    assert loaded.info.fingerprint != tiny.info.fingerprint


@torch.no_grad()
def test_a_unet_of_clean_latents_gets_no_noise(tiny_copy: Path) -> None:
    whole = _whole_unet(seed=7)
    (tiny_copy / "clean").mkdir()
    save_file(whole.state_dict(), tiny_copy / "clean" / "clean_unet.safetensors")  # published without a config
    config = {"config.json": sha256(tiny_copy / "unet" / "config.json")}
    part = {
        "source": {"kind": "path", "path": "clean", "files": _sealed(tiny_copy / "clean")},
        "config": {"kind": "path", "path": "unet", "files": config},
        "is_noiseless": True,
    }
    _with_profile(tiny_copy, "unet", part)
    backbone = load_bundle(tiny_copy, device="cpu", profile="other").encoder.extractor.backbone
    latents = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(2))
    steps, states = torch.tensor([50, 200]), torch.randn((2, 16, 384), generator=torch.Generator().manual_seed(4))
    tapped = _hooked(whole, TAPS)
    whole(latents, steps, encoder_hidden_states=states)
    for tap, found in backbone.taps_of(latents, steps, states).items():
        assert (found - tapped[tap]).abs().max() <= 1e-5 * tapped[tap].abs().max(), tap


def _sealed(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted(folder.iterdir())}


def test_neither_decoder_nor_output_is_loaded(tiny: LoadedBundle) -> None:
    names = set(tiny.encoder.extractor.backbone.state_dict())
    assert not [name for name in names if name.startswith(("vae.decoder", "vae.post_quant"))]
    assert not [name for name in names if name.startswith(("unet.conv_out", "unet.conv_norm_out"))]


def test_an_unknown_tap_is_named() -> None:
    with pytest.raises(BundleError, match="up_7"):
        build_truncated_unet(TINY_UNET, ["mid", "up_7"])


def test_fewer_taps_load_fewer_blocks_and_give_the_same_maps(tiny_copy: Path, tiny: LoadedBundle) -> None:
    manifest = (tiny_copy / "bundle.json").read_text()
    (tiny_copy / "bundle.json").write_text(
        manifest.replace('"profiles": {}', '"profiles": {"fast": {"taps": ["mid", "up_0"]}}')
    )
    from models.bundle.build import load_extractor
    from models.bundle.files import read_manifest

    fast = read_manifest(tiny_copy, "fast")
    extractor = load_extractor(tiny_copy, fast, device=torch.device("cpu"), dtype=torch.float32)
    # Two, since the library takes one image alone through other kernels than a loaded bundle (docs/adr/0028).
    pixels, steps = torch.zeros((2, 3, 128, 128)), torch.tensor([50, 50])
    few = extractor(pixels, steps, [None, None])
    every = tiny.encoder.extractor(pixels, steps, [None, None])
    assert set(few.taps) == {"mid", "up_0"}
    assert all(torch.equal(few.taps[tap], every.taps[tap]) for tap in few.taps)
    with pytest.raises(BundleError, match="the U-head of 'random-tiny' needs the tap 'up_1'"):
        load_bundle(tiny_copy, device="cpu", profile="fast")


def test_an_unknown_profile_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no profile 'fast'"):
        load_bundle(tiny_bundle, device="cpu", profile="fast")


def test_noise_is_one_tensor_for_every_image() -> None:
    noise = fixed_noise(7, 4, 8, 8)
    assert noise.shape == (1, 4, 8, 8)
    assert torch.equal(noise, fixed_noise(7, 4, 8, 8))
    assert not torch.equal(noise, fixed_noise(8, 4, 8, 8))


def test_noise_follows_the_forward_process() -> None:
    alphas = torch.linspace(0.99, 0.01, 1000)
    latents, noise = torch.full((2, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    noisy = add_noise(latents, noise, torch.tensor([0, 999]), alphas).flatten()
    expected = [0.99**0.5 * 2 + 0.01**0.5 * 3, 0.01**0.5 * 2 + 0.99**0.5 * 3]
    assert noisy.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_keeps_the_noise_schedule_exact(tiny_bundle: Path, dtype: str, tiny: LoadedBundle) -> None:
    half = load_bundle(tiny_bundle, device="cpu", dtype=dtype)
    exact = tiny.encoder.extractor.backbone.alphas_cumprod
    assert torch.equal(half.encoder.extractor.backbone.alphas_cumprod, exact)
    assert half.info.dtype == dtype
    assert half.info.fingerprint != tiny.info.fingerprint
