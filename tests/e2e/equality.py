"""The loaded networks beside the libraries' own, whole and at full size: `python -m tests.e2e.equality FOLDER`.

FOLDER is of `vermouth bundle random --arch sd15|sd21`. Everything is computed in float32 on one photograph; exit code 1
if a deviation is over 1e-3 of the largest value. Needs 15 GB of memory and some minutes.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPTextModel, CLIPTokenizer

from benchmarks.report import ROOT, header, table, write
from models.bundle.build import LoadedBundle, load_bundle
from models.training_free import TrainingFreeNetwork

Found = tuple[str, torch.Tensor, torch.Tensor]  # what, ours, the library's
BOUND = 1e-3
TEXTS = ["", "a photograph of an astronaut"]
_LIBRARY = {"variant": "fp16", "torch_dtype": torch.float32, "local_files_only": True}


def main() -> int:
    """Compare and write a table; exit code 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    loaded = load_bundle(options.folder, device="cpu", dtype="fp32")
    rows, failed = [], False
    with torch.inference_mode():
        for what, ours, theirs in compared(loaded, options.folder):
            deviation = float((ours - theirs).abs().max() / theirs.abs().max())
            failed |= not deviation <= BOUND
            rows.append({"what": what, "shape": tuple(ours.shape), "relative deviation": f"{deviation:.1e}"})
            sys.stderr.write(f"{rows[-1]}\n")
        found, expected = captions(loaded, options.folder)
        failed |= found != expected
        rows.append(
            {"what": f"caption '{expected[-1]}'", "relative deviation": "equal" if found == expected else "differs"}
        )
    name = f"equality-{loaded.info.name.removeprefix('random-')}"
    title = [f"# {loaded.info.name} beside diffusers, transformers and open_clip", ""]
    write(options.out, name, [*title, header(f"python -m tests.e2e.equality {options.folder}"), "", *table(rows)], rows)
    return int(failed)


def photograph(side: int) -> torch.Tensor:
    """[1, 3, side, side] in [-1, 1]."""
    pixels = np.asarray(Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def compared(loaded: LoadedBundle, folder: Path) -> Iterator[Found]:
    """Text states, VAE means, taps of every task, and CLIP's features of the image and of words."""
    extractor, network = loaded.encoder.extractor, loaded.encoder.network
    states = extractor.text.states(TEXTS).clone()
    yield "text states", states, library_states(folder)
    vae = AutoencoderKL.from_pretrained(folder / "vae", **_LIBRARY).eval()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", **_LIBRARY).eval()
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    tapped: dict[str, torch.Tensor] = {}
    for tap in extractor.backbone.taps:
        block = unet.mid_block if tap == "mid" else unet.up_blocks[int(tap[3:])]
        block.register_forward_hook(lambda _m, _i, output, tap=tap: tapped.__setitem__(tap, output))
    profiles = {(task.resolution, task.timestep) for task in loaded.info.tasks.values()}
    for side, timestep in sorted(profiles):
        pixels, at = photograph(side), f"{side} px"
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        yield f"VAE mean, {at}", extractor.backbone.latents(pixels), latents
        noise = torch.randn((1, *latents.shape[1:]), generator=torch.Generator().manual_seed(0))
        steps = torch.full((1,), timestep)
        unet(scheduler.add_noise(latents, noise, steps), steps, encoder_hidden_states=states[1:])
        found = extractor.backbone(pixels, steps, states[1:])
        for tap, expected in tapped.items():
            yield f"tap {tap}, {at}, t = {timestep}", found[tap], expected
    del vae, unet
    if isinstance(network, TrainingFreeNetwork):
        yield from clip_features(loaded, network, folder)


def library_states(folder: Path) -> torch.Tensor:
    """[2, 77, D] of transformers' text encoder."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    model = CLIPTextModel.from_pretrained(folder / "text_encoder", variant="fp16", local_files_only=True).float().eval()
    tokens = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    states: torch.Tensor = model(tokens.input_ids).last_hidden_state
    return states


def clip_features(loaded: LoadedBundle, network: TrainingFreeNetwork, folder: Path) -> Iterator[Found]:
    """The image and text features of open_clip, from the file's own weights."""
    part = json.loads((folder / "bundle.json").read_text())["components"]["clip"]
    model = open_clip.create_model(part["model"], load_weights=False).eval()
    model.load_state_dict(load_file(folder / "clip" / "open_clip_model.safetensors"))
    side = network.clip.side
    pixels = photograph(side)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    yield "CLIP of the image", network.clip(pixels)[0], model.encode_image(((pixels + 1) / 2 - mean) / std)
    names = TEXTS[1:]
    tokens = open_clip.get_tokenizer(part["model"])(names)
    yield "CLIP of words", loaded.encoder.encode_texts(names).pooled, model.encode_text(tokens, normalize=True)


def captions(loaded: LoadedBundle, folder: Path) -> tuple[list[str], list[str]]:
    """The captions of an image and of its mirror image, ours and transformers'."""
    captioner = loaded.encoder.extractor.captioner
    if captioner is None:
        raise SystemExit("the bundle has no captioner")
    part = json.loads((folder / "bundle.json").read_text())["components"]["captioner"]
    pixels = torch.cat([photograph(256), photograph(256).flip(3)])
    model = BlipForConditionalGeneration.from_pretrained(folder / "blip", local_files_only=True).float().eval()
    processor = BlipProcessor.from_pretrained(folder / "blip", local_files_only=True)
    side = part["resolution"] or model.config.vision_config.image_size
    inputs = processor(
        images=list((pixels + 1) / 2),
        text=[part["prefix"]] * len(pixels),
        do_rescale=False,
        size={"height": side, "width": side},
        return_tensors="pt",
    )
    tokens = model.generate(
        **inputs, max_new_tokens=part["max_tokens"], do_sample=False, num_beams=1, interpolate_pos_encoding=True
    )
    theirs = [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
    return captioner.captions(pixels), theirs


if __name__ == "__main__":
    sys.exit(main())
