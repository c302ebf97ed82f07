"""`vermouth eval photographs` and `vermouth train photographs` on a small folder of the shared data's layout."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from models.bundle.build import load_bundle
from models.bundle.pack import write_random
from training.commands.eval import eval_app

NAMES = ("cat", "cup", "dog", "tree", "car", "owl", "hat", "sun", "moon", "fish", "bird", "boat")


def webp(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).resize((60, 50)).save(out, "WEBP")
    return out.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"file": f"{name}/{number}.webp", "source": "animals", "name": name, "split": "validation"}
        for name in NAMES
        for number in range(4)
    ]
    with zipfile.ZipFile(tmp_path / "photographs.zip", "w") as archive:
        for number, row in enumerate(rows):
            archive.writestr(row["file"], webp(number))
    with gzip.open(tmp_path / "photographs.jsonl.gz", "wt") as lines:
        lines.write("".join(json.dumps(row) + "\n" for row in rows))
    with zipfile.ZipFile(tmp_path / "tu-berlin.zip", "w") as archive:
        for name in ("cat", "owl"):
            for number in range(1, 3):
                archive.writestr(f"{name}/{number}.png", webp(number))
    with zipfile.ZipFile(tmp_path / "clothing-masks.zip", "w") as archive:
        archive.writestr("labels.json", json.dumps(["null", "hat", "shoes"]))
        archive.writestr("0006.webp", webp(0))
        labels = io.BytesIO()
        Image.fromarray(np.ones((50, 60), np.uint8)).save(labels, "PNG")
        archive.writestr("0006.png", labels.getvalue())
    drawings = [
        {"word": word, "key_id": str(number), "drawing": [[[0, 90], [0, 90]]]} for number, word in enumerate(NAMES)
    ]
    (tmp_path / "drawings.ndjson").write_text("".join(json.dumps(row) + "\n" for row in drawings))
    splits = {"seen": [], "unseen": [], "unseen_words": ["owl"], "validation_drawings": ["0", "5"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    (tmp_path / "concepts.json").write_text("{}")
    return tmp_path


def test_a_bundle_is_measured_beside_the_expert_without_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.evaluation.photographs.EPISODES", ((3, 1),))
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    write_random(bundle, arch="tiny", seed=0)
    options = ["--bundle", bundle, "--data", data, "--out", out, "--cache", tmp_path / "cache", "--episodes", 3]
    done = CliRunner().invoke(eval_app, ["photographs", *map(str, options), "--masks", "3"])
    assert done.exit_code == 0, done.output
    found = {name: json.loads((out / f"photos-{name}.json").read_text()) for name in ("text", "sketch", "fewshot")}
    models = {row["model"] for row in found["text"]["rows"]}
    assert models == {"random-tiny", "expert, no training, 224 px"}
    assert found["text"]["fingerprints"] == {"random-tiny": load_bundle(bundle, device="cpu").info.fingerprint}
    assert all(0 <= row["map_all"] <= 1 for row in [*found["text"]["rows"], *found["sketch"]["rows"]])
    assert {(row["sketches"], row["names"], row["queries"]) for row in found["sketch"]["rows"]} == {
        ("TU-Berlin", "seen", 2),
        ("TU-Berlin", "unseen", 2),
        ("Quick, Draw!", "seen", 1),
        ("Quick, Draw!", "unseen", 1),
    }
    assert {row["vectors"] for row in found["fewshot"]["rows"]} == {
        "features, centred",
        "semantic",
        "visual",
        "semantic + visual",
    }
    (masks,) = json.loads((out / "photos-segment.json").read_text())["rows"]
    assert set(masks) == {"model", "largest area", "miou", "figure_ground"}
