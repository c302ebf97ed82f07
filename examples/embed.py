"""Vectors of images and words in one space: the cosine says how well a name fits an image."""

import base64
import os
from pathlib import Path

import httpx
import numpy as np

with httpx.Client(base_url=os.environ.get("VERMOUTH_URL", "http://127.0.0.1:8000"), timeout=30) as client:
    image = {"base64": base64.b64encode(Path("docs/pictures/sketch.png").read_bytes()).decode()}
    names = ["fish", "house", "star"]
    answer = client.post("/embed", json={"images": [image], "texts": names}).raise_for_status().json()
    cosines = np.array(answer["texts"]) @ np.array(answer["images"][0])
    print(dict(zip(names, cosines.round(2).tolist(), strict=True)))
