"""The two device operations over the tiny bundle."""

import pytest
import torch

from app import domain
from models.bundle.build import LoadedBundle
from models.encoder import Encoder
from models.types import ImageBatch


def _one(batch: ImageBatch, slot: int) -> ImageBatch:
    return ImageBatch(
        pixels=batch.pixels[slot, None], timesteps=batch.timesteps[slot, None], captions=[batch.captions[slot]]
    )


def test_it_is_the_encoder_the_service_knows(tiny: LoadedBundle) -> None:
    encoder: domain.Encoder = tiny.encoder
    assert isinstance(encoder, Encoder)
    assert encoder.dimension == tiny.info.dimension == 384
    assert encoder.fingerprint == tiny.info.fingerprint


def test_images_and_strings_meet_in_one_space(tiny: LoadedBundle, batch: ImageBatch) -> None:
    images, texts = tiny.encoder.encode_images(batch), tiny.encoder.encode_texts(["fish", "house", "star"])
    assert images.pooled.shape == (8, 384)
    assert images.dense.shape == (8, 384, 32, 32)
    assert texts.pooled.shape == (3, 384)
    assert {t.dtype for t in (images.pooled, images.dense, texts.pooled)} == {torch.float32}
    for pooled in (images.pooled, texts.pooled):
        assert torch.allclose(pooled.norm(dim=1), torch.ones(len(pooled)), atol=1e-5)


def test_visual_is_the_mean_of_the_experts_last_map(tiny: LoadedBundle, batch: ImageBatch) -> None:
    found = tiny.encoder.encode_images(batch).visual
    expert = tiny.encoder.extractor.expert
    assert expert is not None
    with torch.inference_mode():
        pooled = expert(batch.pixels)[-1].mean(dim=(2, 3))
    assert found.shape == (8, 320)
    assert found.dtype == torch.float32
    assert tiny.info.visual_dimension == tiny.encoder.visual_dimension == 320
    assert tiny.info.features == ("semantic", "visual", "dense")
    assert not tiny.info.is_training_free
    assert torch.allclose(found, pooled / pooled.norm(dim=1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("slot", [0, 1, 3, 7])
def test_alone_and_in_a_batch_of_eight_are_the_same(tiny: LoadedBundle, batch: ImageBatch, slot: int) -> None:
    together, alone = tiny.encoder.encode_images(batch), tiny.encoder.encode_images(_one(batch, slot))
    for name in ("pooled", "visual", "dense"):
        in_batch, single = getattr(together, name)[slot], getattr(alone, name)[0]
        assert (in_batch - single).norm() / single.norm() <= 1e-4


def test_the_slot_and_the_neighbours_change_no_bit(tiny: LoadedBundle, batch: ImageBatch) -> None:
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    moved = ImageBatch(
        pixels=batch.pixels[order], timesteps=batch.timesteps[order], captions=[batch.captions[slot] for slot in order]
    )
    here, there = tiny.encoder.encode_images(batch), tiny.encoder.encode_images(moved)
    assert torch.equal(here.pooled[order], there.pooled)
    assert torch.equal(here.visual[order], there.visual)
    assert torch.equal(here.dense[order], there.dense)


def test_a_caption_conditions_the_backbone(tiny: LoadedBundle, batch: ImageBatch) -> None:
    plain = _one(batch, 0)
    captioned = ImageBatch(pixels=plain.pixels, timesteps=plain.timesteps, captions=["a photo of a whale"])
    extract = tiny.encoder.extractor
    without = extract(plain.pixels, plain.timesteps, plain.captions).taps["up_3"]
    empty = extract(plain.pixels, plain.timesteps, [""]).taps["up_3"]
    with_it = extract(captioned.pixels, captioned.timesteps, captioned.captions).taps["up_3"]
    assert torch.equal(without, empty)
    assert not torch.allclose(without, with_it, atol=1e-4)


def test_the_time_step_reaches_the_backbone(tiny: LoadedBundle, batch: ImageBatch) -> None:
    pixels = batch.pixels[:1]
    early = tiny.encoder.extractor(pixels, torch.tensor([0]), [None]).taps["mid"]
    late = tiny.encoder.extractor(pixels, torch.tensor([900]), [None]).taps["mid"]
    assert not torch.allclose(early, late, atol=1e-3)


def test_text_states_are_cached_within_bounds(tiny: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = tiny.encoder.extractor
    monkeypatch.setattr("models.encoder._CAPTION_CACHE", 3)
    pixels = torch.zeros((5, 3, 64, 64))
    steps = torch.zeros(5, dtype=torch.int64)
    captions = ["one", "two", "three", "four", "five"]
    first = extractor(pixels, steps, captions).taps["mid"]
    assert list(extractor._states) == ["three", "four", "five"]
    second = extractor(pixels, steps, captions).taps["mid"]
    assert torch.equal(first, second)
