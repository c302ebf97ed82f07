"""BLIP from a folder of random weights, and bundles without a captioner."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

from models.bundle.build import LoadedBundle
from models.bundle.files import sha256
from models.bundle.manifest import CaptionerPart, PathSource
from models.bundle.parts import load_captioner
from models.encoder import FrozenExtractor
from models.text import MINILM_PACKAGE, BlipCaptioner, package_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = BlipTextConfig(**small, encoder_hidden_size=32, vocab_size=30524, projection_dim=32, bos_token_id=30522)
    vision = BlipVisionConfig(**small, image_size=32, patch_size=16, projection_dim=32)
    torch.manual_seed(0)
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32)
    model = BlipForConditionalGeneration(config)
    for parameter in model.parameters():  # with the library's small weights every image has the same caption
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    shutil.copy(package_folder(MINILM_PACKAGE) / "model" / "vocab.txt", folder / "vocab.txt")
    tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def _part(folder: Path) -> CaptionerPart:
    files = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    return CaptionerPart(source=PathSource(path=str(folder), files=files), max_tokens=5)


def test_captions_are_greedy_and_start_with_the_prefix(blip: Path, tmp_path: Path) -> None:
    captioner = load_captioner(_part(blip), tmp_path, CPU, torch.float32)
    assert isinstance(captioner, BlipCaptioner)
    pixels = torch.rand((3, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    captions = captioner.captions(pixels)
    assert len(captions) == 3
    assert all(caption.startswith("a picture of") for caption in captions)
    assert captions == captioner.captions(pixels)
    assert captioner.captions(pixels[1:2]) == captions[1:2]


@pytest.mark.parametrize("resolution", [None, 32, 64, 48], ids=["the file's", "its own", "larger", "between"])
@torch.no_grad()
def test_captions_equal_those_of_transformers(blip: Path, tmp_path: Path, resolution: int | None) -> None:
    part = _part(blip).model_copy(update={"resolution": resolution})
    noise = torch.randint(0, 128, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    pixels = noise + torch.tensor([0, 60, 120]).view(3, 1, 1, 1)
    found = load_captioner(part, tmp_path, CPU, torch.float32).captions(pixels / 127.5 - 1)
    model = BlipForConditionalGeneration.from_pretrained(blip, local_files_only=True).eval()
    processor = BlipProcessor.from_pretrained(blip, local_files_only=True)
    side = resolution or 32
    # Resized by the processor itself; its own bytes would add a rounding that serving does not have.
    inputs = processor(
        images=list(pixels / 255),
        text=[part.prefix] * 3,
        do_rescale=False,
        size={"height": side, "width": side},
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False, interpolate_pos_encoding=True)
    expected = [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
    assert found == expected
    assert len(set(found)) > 1, "captions depend on the images"


def test_captions_of_a_batch_are_computed_at_once(blip: Path, tmp_path: Path, tiny: LoadedBundle) -> None:
    captioner = load_captioner(_part(blip), tmp_path, CPU, torch.float32)
    batches: list[int] = []

    class Counted:
        def captions(self, pixels: torch.Tensor) -> list[str]:
            batches.append(len(pixels))
            return captioner.captions(pixels)

    backbone, text = tiny.encoder.extractor.backbone, tiny.encoder.extractor.text
    extractor = FrozenExtractor(backbone, text, Counted(), None)  # type: ignore[arg-type]  # counts its calls
    pixels = torch.rand((4, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        states = extractor.conditioning(pixels, [None, "a fish", None, None])
    assert batches == [3]
    assert states.shape[0] == 4


def test_its_weights_are_the_folders(blip: Path, tmp_path: Path) -> None:
    captioner = load_captioner(_part(blip), tmp_path, CPU, torch.float32)
    assert isinstance(captioner, BlipCaptioner)
    expected = BlipForConditionalGeneration.from_pretrained(blip, local_files_only=True).state_dict()
    for name, tensor in captioner._model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_without_a_captioner_the_prompt_is_empty(tiny: LoadedBundle) -> None:
    extractor, pixels = tiny.encoder.extractor, torch.zeros((2, 3, 128, 128))
    assert extractor.captioner is None
    with torch.inference_mode():
        states = extractor.conditioning(pixels, [None, None])
        assert torch.equal(states, extractor.conditioning(pixels, ["", ""]))
