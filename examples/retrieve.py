"""Search a gallery by a drawing, by words and by an image file."""

import os
from pathlib import Path

import httpx

HOUSE = [[[40, 40, 210, 210, 40], [120, 230, 230, 120, 120]], [[25, 125, 225], [120, 30, 120]]]
with httpx.Client(base_url=os.environ.get("VERMOUTH_URL", "http://127.0.0.1:8000"), timeout=30) as client:
    drawing = {"strokes": HOUSE, "width": 256, "height": 256}
    by_drawing = client.post("/retrieve", json={"sketch": drawing, "k": 5})
    by_words = client.post("/retrieve", json={"text": "a fish", "k": 5})
    file = Path("docs/pictures/sketch.png").read_bytes()
    by_file = client.post("/retrieve", files={"sketch": file}, data={"k": "5"})
    for answer in (by_drawing, by_words, by_file):
        print([(found["id"], round(found["score"], 2)) for found in answer.raise_for_status().json()["results"]])
