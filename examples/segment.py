"""Cut named things out of an image: areas, and one PNG whose palette indexes are the classes."""

import os
from pathlib import Path

import httpx

with httpx.Client(base_url=os.environ.get("VERMOUTH_URL", "http://127.0.0.1:8000"), timeout=30) as client:
    image = {"image": Path("docs/pictures/scene.png").read_bytes()}
    names = {"classes": ["mailbox", "notebook"]}
    for found in client.post("/segment", files=image, data=names).raise_for_status().json()["classes"]:
        print(found["name"], found["area"], found["bbox"])
    masks = client.post("/segment", files=image, data=names, headers={"Accept": "image/png"}).raise_for_status()
    print(len(masks.content), "bytes of PNG")
