"""Fill a gallery of your own, search it, and delete it."""

import os
from pathlib import Path

import httpx

with httpx.Client(base_url=os.environ.get("VERMOUTH_URL", "http://127.0.0.1:8000"), timeout=30) as client:
    client.put("/galleries/mine", json={"description": "two images"}).raise_for_status()
    files = [("image", Path(f"docs/pictures/{name}.png").read_bytes()) for name in ("scene", "sketch")]
    items = '[{"id": "scene", "metadata": {"drawn": false}}, {"id": "sketch", "metadata": {"drawn": true}}]'
    added = client.post("/galleries/mine/items", files=files, data={"items": items}).raise_for_status()
    print(added.json()["results"])
    query = {"gallery": "mine", "text": "a drawing", "filter": {"drawn": True}}
    print(client.post("/retrieve", json=query).raise_for_status().json()["results"])
    client.delete("/galleries/mine", params={"confirm": "mine"}).raise_for_status()
