"""Captions that condition the U-Net: BLIP with greedy decoding after a fixed prefix."""

import torch
from transformers import BlipForConditionalGeneration, BlipProcessor


class BlipCaptioner:
    """BLIP-base as the paper uses it (Li et al. 2022): `max_tokens` tokens after a fixed prefix."""

    def __init__(
        self, model: BlipForConditionalGeneration, processor: BlipProcessor, *, prefix: str, max_tokens: int
    ) -> None:
        self._model = model
        self._processor = processor
        self._prefix = prefix
        self._max_tokens = max_tokens

    @torch.inference_mode()
    def captions(self, pixels: torch.Tensor) -> list[str]:
        """[B, 3, H, W] in [-1, 1], RGB → B captions, prefix included."""
        # Pixels are in [0, 1] already: rescaling would divide them by 255.
        images = self._processor.image_processor(((pixels + 1) / 2).cpu(), do_rescale=False, return_tensors="pt")
        prefix = self._processor.tokenizer([self._prefix] * len(pixels), return_tensors="pt")
        device = pixels.device
        tokens = self._model.generate(
            pixel_values=images["pixel_values"].to(device=device, dtype=pixels.dtype),
            input_ids=prefix["input_ids"].to(device),
            attention_mask=prefix["attention_mask"].to(device),
            max_new_tokens=self._max_tokens,
            do_sample=False,  # greedy: a caption, and so a feature, must not be random
            num_beams=1,
        )
        return [text.strip() for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]
