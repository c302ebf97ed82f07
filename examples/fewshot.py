"""Register three classes by a few examples each, then classify an image."""

import os

import httpx

EXAMPLES = {"cat": ["1f431", "1f408"], "fish": ["1f41f", "1f420"], "house": ["1f3e0", "1f3e1"]}


def item(name: str) -> dict[str, dict[str, str]]:
    return {"item": {"gallery": "default", "id": name}}


with httpx.Client(base_url=os.environ.get("VERMOUTH_URL", "http://127.0.0.1:8000"), timeout=30) as client:
    ways = [{"label": label, "support": [item(name) for name in names]} for label, names in EXAMPLES.items()]
    episode = client.post("/fewshot/episodes", json={"name": "demo", "ways": ways}).raise_for_status()
    path = episode.headers["location"]
    answer = client.post(f"{path}/classify", json={"queries": [item("1f638")]}).raise_for_status()
    print(answer.json()["predictions"][0]["label"])
    client.delete(path).raise_for_status()
