"""Mixed writes of several clients, what was acknowledged to them, and what must exist after a crash."""

import base64
import contextlib
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from PIL import Image

IDS = 8
WRITES = 60
ITEMS = "/galleries/default/items"
Content = object
"""What a name stands for, as it is compared: (image, number) of an item, names of a class set; None: not there."""


@dataclass(slots=True)
class Known:
    """What clients know of one name: the last acknowledged content, and what may be in doubt.

    A write that got no answer is absent or whole, so until the next answer both are right.
    """

    sure: Content = None
    doubtful: list[Content] = field(default_factory=list)

    def begin(self, content: Content) -> None:
        self.doubtful.append(content)

    def acknowledge(self, content: Content) -> None:
        self.sure = content
        self.doubtful.clear()

    def allows(self, content: Content) -> bool:
        return content == self.sure or content in self.doubtful


@dataclass(slots=True)
class Counts:
    """How much was acknowledged, and what became of writes without an answer."""

    acknowledged: int = 0
    stored: int = 0
    gone: int = 0


@dataclass(slots=True)
class Writer:
    """One client; its items, class sets and episodes are nobody else's."""

    number: int
    items: dict[str, Known] = field(default_factory=dict)
    class_sets: dict[str, Known] = field(default_factory=dict)
    episodes: dict[str, Known] = field(default_factory=dict)
    together: dict[str, Content] = field(default_factory=dict)
    """What one unanswered call writes: all of it or nothing."""
    counts: Counts = field(default_factory=Counts)

    def write_until_gone(self, address: str, seed: int) -> None:
        """Writes until the process is dead, or enough was written."""
        chance = random.Random(f"{seed} {self.number}")
        kinds: list[tuple[Callable[[httpx.Client, random.Random], None], int]] = [
            (self._put, 8), (self._delete, 5), (self._patch, 4), (self._put_many, 4), (self._class_set, 2),
            (self._episode, 2),
        ]  # fmt: skip
        weighted = [write for write, weight in kinds for _ in range(weight)]
        with httpx.Client(base_url=address, timeout=20) as client, contextlib.suppress(httpx.TransportError):
            for _ in range(WRITES):
                chance.choice(weighted)(client, chance)
                self.counts.acknowledged += 1

    def check(self, client: httpx.Client) -> None:
        """Compare what is stored with what was acknowledged; this settles what was in doubt."""
        found = _found_items(client, f"w{self.number}-")
        arrived = {found.get(name) == content for name, content in self.together.items()}
        assert len(arrived) <= 1, f"half of one call is there: {list(self.together)}"
        self.together = {}
        self._settle(self.items, found)
        self._settle(self.class_sets, _found_class_sets(client, f"w{self.number}-"))
        self._settle(self.episodes, _found_episodes(client, f"w{self.number}-"))

    def _settle(self, known: dict[str, Known], found: dict[str, Any]) -> None:
        assert found.keys() <= known.keys(), "something is there that nobody wrote"
        for name, one in known.items():
            content = found.get(name)
            assert one.allows(content), f"{name} is not what was acknowledged"
            if one.doubtful:
                is_stored = content in one.doubtful
                self.counts.stored += is_stored
                self.counts.gone += not is_stored
            one.acknowledge(content)

    def _some(self, chance: random.Random) -> tuple[str, Known]:
        name = f"w{self.number}-{chance.randrange(IDS)}"
        return name, self.items.setdefault(name, Known())

    def _put(self, client: httpx.Client, chance: random.Random) -> None:
        name, known = self._some(chance)
        content = (image(chance), chance.getrandbits(40))
        known.begin(content)
        body = {"image": wire(content[0]), "metadata": {"n": content[1]}}
        assert client.put(f"{ITEMS}/{name}", json=body).status_code in (200, 201)
        known.acknowledge(content)

    def _delete(self, client: httpx.Client, chance: random.Random) -> None:
        name, known = self._some(chance)
        known.begin(None)
        assert client.delete(f"{ITEMS}/{name}").status_code in (204, 404)
        known.acknowledge(None)

    def _patch(self, client: httpx.Client, chance: random.Random) -> None:
        name, known = self._some(chance)
        content = None
        if isinstance(known.sure, tuple):
            content = (known.sure[0], chance.getrandbits(40))
            known.begin(content)
        body = {"metadata": {"n": content and content[1]}}
        assert client.patch(f"{ITEMS}/{name}", json=body).status_code == (200 if content else 404)
        known.acknowledge(content)

    def _put_many(self, client: httpx.Client, chance: random.Random) -> None:
        new = {self._some(chance)[0]: (image(chance), chance.getrandbits(40)) for _ in range(3)}
        body = [{"id": name, "image": wire(one), "metadata": {"n": n}} for name, (one, n) in new.items()]
        self.together = dict(new)
        for name, content in new.items():
            self.items[name].begin(content)
        assert client.post(ITEMS, json=body).status_code == 200
        self.together = {}
        for name, content in new.items():
            self.items[name].acknowledge(content)

    def _class_set(self, client: httpx.Client, chance: random.Random) -> None:
        name = f"w{self.number}-{chance.randrange(2)}"
        known = self.class_sets.setdefault(name, Known())
        content = None if chance.random() < 0.3 else (f"a{chance.getrandbits(40)}", "b")
        known.begin(content)
        if content is None:
            answer = client.delete(f"/class-sets/{name}")
        else:
            answer = client.put(f"/class-sets/{name}", json={"classes": list(content)})
        assert answer.status_code in (200, 201, 204, 404)
        known.acknowledge(content)

    def _episode(self, client: httpx.Client, chance: random.Random) -> None:
        """Create one, or delete one; they are known apart by their names."""
        old = next((name for name, known in self.episodes.items() if known.sure is not None), None)
        if old is not None and chance.random() < 0.5:
            known = self.episodes[old]
            (episode_id,) = (one["id"] for one in _episodes(client) if one["name"] == old)
            known.begin(None)
            assert client.delete(f"/fewshot/episodes/{episode_id}").status_code == 204
            known.acknowledge(None)
            return
        name = f"w{self.number}-{chance.getrandbits(40)}"
        content = tuple(image(chance) for _ in range(2))
        known = self.episodes[name] = Known()
        known.begin(content)
        ways = [{"label": f"way {at}", "support": [wire(one)]} for at, one in enumerate(content)]
        assert client.post("/fewshot/episodes", json={"name": name, "ways": ways}).status_code == 201
        known.acknowledge(content)


def image(chance: random.Random) -> bytes:
    pixels = np.frombuffer(chance.randbytes(12 * 12 * 3), np.uint8).reshape(12, 12, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def wire(content: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(content).decode()}


def _found_items(client: httpx.Client, prefix: str) -> dict[str, Content]:
    found = client.get(f"{ITEMS}?limit=1000").json()["items"]
    return {
        one["id"]: (client.get(one["image_url"]).content, one["metadata"]["n"])
        for one in found
        if one["id"].startswith(prefix)
    }


def _found_class_sets(client: httpx.Client, prefix: str) -> dict[str, Content]:
    names = [one["name"] for one in client.get("/class-sets").json()["class_sets"] if one["name"].startswith(prefix)]
    read = {name: client.get(f"/class-sets/{name}").json()["classes"] for name in names}
    return {name: tuple(one["name"] for one in classes) for name, classes in read.items()}


def _found_episodes(client: httpx.Client, prefix: str) -> dict[str, Content]:
    ids = {one["name"]: one["id"] for one in _episodes(client) if one["name"].startswith(prefix)}
    ways = {name: client.get(f"/fewshot/episodes/{one}").json()["ways"] for name, one in ids.items()}
    return {
        name: tuple(client.get(way["support"][0]["image_url"]).content for way in found) for name, found in ways.items()
    }


def _episodes(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    parameters: dict[str, str | int] = {"limit": 100}
    while True:
        page = client.get("/fewshot/episodes", params=parameters).json()
        found += page["episodes"]
        if page["next_cursor"] is None:
            return found
        parameters["cursor"] = page["next_cursor"]
