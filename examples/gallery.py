"""Fill a gallery of your own, search it, and delete it."""

import os
from pathlib import Path

import httpx

with httpx.Client(base_url=os.environ.get("VERMOUTH_URL", "http://127.0.0.1:8000"), timeout=30) as client:
    client.put("/galleries/example-two-images", json={"description": "two images"}).raise_for_status()
    files = [("image", Path(f"docs/pictures/{name}.png").read_bytes()) for name in ("scene", "sketch")]
    items = '[{"id": "scene", "metadata": {"drawn": false}}, {"id": "sketch", "metadata": {"drawn": true}}]'
    added = client.post("/galleries/example-two-images/items", files=files, data={"items": items}).raise_for_status()
    print(added.json()["results"])
    query = {"gallery": "example-two-images", "text": "a drawing", "filter": {"drawn": True}}
    print(client.post("/retrieve", json=query).raise_for_status().json()["results"])
    client.delete("/galleries/example-two-images", params={"confirm": "example-two-images"}).raise_for_status()
