"""The encoder and the heads as a library: no server, no database."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.bundle.build import load_bundle
from models.heads.fewshot import prototype_probabilities
from models.transforms import fit_square
from models.types import ImageBatch, to_unit_batch

bundle = load_bundle(Path("weights/mini"), device="cpu")
task = bundle.info.tasks["segmentation"]
images = [np.asarray(Image.open(f"docs/pictures/{name}.png").convert("RGB")) for name in ("scene", "sketch")]
squares = [fit_square(image, task.resolution) for image in images]
pixels = torch.from_numpy(to_unit_batch(squares))
timesteps = torch.full((len(squares),), task.timestep)
features = bundle.encoder.encode_images(ImageBatch(pixels=pixels, timesteps=timesteps, captions=[None, None]))
names = bundle.encoder.encode_texts(["mailbox", "notebook"]).pooled.numpy()

print("cosines of images and names:", (features.pooled.numpy() @ names.T).round(2).tolist())
cells = bundle.segmentation_head.probabilities(features.dense[0].numpy(), names)
print("share of the cells by class, background first:", (cells.argmax(0)[..., None] == range(3)).mean((0, 1)).round(2))
support = [features.pooled[:1].numpy(), features.pooled[1:].numpy()]
print("classified as:", prototype_probabilities(support, features.pooled.numpy()).argmax(1))
