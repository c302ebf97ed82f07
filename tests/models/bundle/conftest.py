"""A tiny bundle whose VAE and U-Net come from a local hub, and an empty cache."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from tests.models.bundle.hub import LocalHub, local_hub

REPO = "someone/model"
WEIGHTS = "diffusion_pytorch_model.safetensors"
WANTED = ["config.json", WEIGHTS]


def hub_source(path: str, repo: str = REPO, revision: str = "main", wanted: list[str] = WANTED) -> dict[str, Any]:
    return {"kind": "hub", "repo": repo, "revision": revision, "path": path, "wanted": wanted}


def edit_source(bundle: Path, component: str, **fields: object) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["components"][component]["source"] |= fields
    (bundle / "bundle.json").write_text(json.dumps(manifest))


@pytest.fixture
def hub_bundle(tiny_copy: Path, tmp_path: Path) -> Path:
    """The tiny bundle with `vae` and `unet` at the hub; its profile `other` takes another VAE from there."""
    repository = tmp_path / "repository"
    for name in ("vae", "unet"):
        shutil.move(tiny_copy / name, repository / name)
    shutil.copytree(repository / "vae", repository / "other_vae")
    config = json.loads((repository / "vae" / "config.json").read_text())
    (repository / "other_vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    manifest = json.loads((tiny_copy / "bundle.json").read_text())
    for name in ("vae", "unet"):
        manifest["components"][name]["source"] = hub_source(name)
    manifest["profiles"] = {"other": {"components": {"vae": {"source": hub_source("other_vae")}}}}
    (tiny_copy / "bundle.json").write_text(json.dumps(manifest))
    return tiny_copy


@pytest.fixture
def hub(hub_bundle: Path) -> Iterator[LocalHub]:
    with local_hub({REPO: hub_bundle.parent / "repository"}) as hub:
        yield hub


@contextmanager
def redirected(hub: LocalHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process's client talks to the local hub and uses an empty cache."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield
    huggingface_hub.close_session()


@pytest.fixture
def cache(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = tmp_path / "huggingface"
    with redirected(hub, home, monkeypatch):
        yield home / "hub"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
