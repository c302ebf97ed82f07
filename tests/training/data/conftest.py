"""The shared splits, and a small tree of unpacked packages with the real layout."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.build import NPM_PACKAGES, Packages
from training.data.dataset import Splits, load_splits

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"

CAT, DOG, OWL = "1F431", "1F436", "2764-FE0F"


@pytest.fixture(scope="session")
def shared_splits() -> Splits:
    if not (SHARED_DATA / "splits.json").is_file():
        pytest.skip("the shared data folder is not here")
    return load_splits(SHARED_DATA)


@pytest.fixture
def drawings_dir(tmp_path: Path) -> Path:
    """Two seen classes and one unseen; one seen word, one unseen, one drawing for validation."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    splits = {"seen": [CAT, DOG], "unseen": [OWL], "unseen_words": ["owl", "hand"], "validation_drawings": ["2"]}
    (folder / "splits.json").write_text(json.dumps(splits))
    (folder / "concepts.json").write_text(json.dumps({"cat": [CAT], "owl": [OWL]}))
    drawing = [[[0, 200], [0, 100]]]
    rows = [{"word": w, "key_id": str(k), "drawing": drawing} for k, w in enumerate(("cat", "owl", "cat"))]
    (folder / "drawings.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    npm, clipart = tmp_path / "node_modules", tmp_path / "png"
    for name in NPM_PACKAGES:
        _write(npm / name / "package.json", json.dumps({"version": "1.0.0"}))
    names = {CAT: "cat", DOG: "dog", OWL: "owl"}
    rows = [{"hexcode": code, "annotation": name} for code, name in names.items()]
    _write(npm / "openmoji/data/openmoji.json", json.dumps(rows))
    for vendor in ("google", "twitter"):
        # Vendors leave out the variation selector, or do not; both must match.
        emoji = [
            {"unified": code.removesuffix("-FE0F"), "image": f"{code}.png", f"has_img_{vendor}": True} for code in names
        ]
        _write(npm / f"emoji-datasource-{vendor}/emoji.json", json.dumps(emoji))
    for shade, (code, name) in enumerate(names.items()):
        for style in ("color", "black"):
            _write(npm / f"openmoji/{style}/svg/{code}.svg", _svg(60 + 40 * shade))
        for vendor in ("google", "twitter"):
            _png(npm / f"emoji-datasource-{vendor}/img/{vendor}/64/{code}.png", 60 + 40 * shade)
        for style in ("modern", "high-contrast", "flat"):
            _write(npm / f"fluentui-emoji/icons/{style}/{name}.svg", _svg(61 + 40 * shade))
    for order, weight in enumerate(("thin", "regular", "bold", "fill", "duotone", "light")):
        suffix = "" if weight == "regular" else f"-{weight}"
        for number, name in enumerate(("bed", "hand-palm", "owls")):
            _write(npm / f"@phosphor-icons/core/assets/{weight}/{name}{suffix}.svg", _svg(200 + 3 * order + number))
    _png(clipart / "animals/a_cat.png", 30)
    _png(clipart / "animals/barn_owl_01.png", 30)  # the same image under an unseen name
    _png(clipart / "animals/blank.png", 255)
    (clipart / "animals/damaged.png").write_bytes(b"no image")
    return Packages(npm=npm, clipart=clipart)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _svg(shade: int) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10">'
        f'<circle cx="5" cy="5" r="4" fill="rgb({shade},0,0)"/></svg>'
    )


def _png(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((20, 40, 3), 255, dtype=np.uint8)
    pixels[5:15, 10:30] = shade
    Image.fromarray(pixels).save(path)
