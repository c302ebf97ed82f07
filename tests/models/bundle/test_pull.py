"""Pulling hub sources, against a hub that lives in a folder (the network is the one thing faked)."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.files import read_manifest, sha256
from models.bundle.pull import HubFile, pull
from models.errors import BundleError, ChecksumError

COMMIT = "c" * 40
VAE = ("config.json", "diffusion_pytorch_model.safetensors")


@dataclass
class FolderHub:
    """A repository in a folder; large files have a SHA-256, small ones git's blob id, as on the real hub."""

    folder: Path
    reported: dict[str, HubFile] = field(default_factory=dict)
    downloads: list[list[str]] = field(default_factory=list)

    def files(self, repo: str, revision: str) -> tuple[str, Mapping[str, HubFile]]:
        assert repo == "someone/model"
        assert revision in ("main", COMMIT)
        found = {}
        for file in sorted(self.folder.rglob("*")):
            if file.is_file():
                found[file.relative_to(self.folder).as_posix()] = self._reported(file)
        return COMMIT, {**found, **self.reported}

    def download(self, repo: str, commit: str, names: Sequence[str]) -> Path:
        assert (repo, commit) == ("someone/model", COMMIT)
        self.downloads.append(list(names))
        return self.folder

    def _reported(self, file: Path) -> HubFile:
        if file.suffix == ".safetensors":
            return HubFile(sha256=sha256(file), blob_id="0" * 40)
        content = file.read_bytes()
        return HubFile(sha256=None, blob_id=hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest())


@pytest.fixture
def hub(tiny_copy: Path, tmp_path: Path) -> FolderHub:
    folder = tmp_path / "hub"
    folder.mkdir()
    shutil.move(tiny_copy / "vae", folder / "vae")
    fields = json.loads((tiny_copy / "bundle.json").read_text())
    source = {"kind": "hub", "repo": "someone/model", "revision": "main", "path": "vae", "wanted": VAE}
    fields["components"]["vae"]["source"] = source
    (tiny_copy / "bundle.json").write_text(json.dumps(fields))
    return FolderHub(folder)


def _serve_from(hub: FolderHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(repo: str, *, revision: str, local_files_only: bool) -> str:
        assert local_files_only, "serving must never reach the network"
        assert (repo, revision) == ("someone/model", COMMIT)
        return str(hub.folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)


def test_a_pulled_bundle_is_pinned_and_loads(
    tiny_copy: Path, hub: FolderHub, tiny: LoadedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = pull(tiny_copy, hub)
    pinned: dict[str, Any] = json.loads(lock.read_text())
    assert pinned == {"vae": {"revision": COMMIT, "files": {name: sha256(hub.folder / "vae" / name) for name in VAE}}}
    assert hub.downloads == [[f"vae/{name}" for name in VAE]]
    _serve_from(hub, monkeypatch)
    assert load_bundle(tiny_copy, device="cpu").info.fingerprint == tiny.info.fingerprint


def test_the_lock_is_enforced_when_serving(tiny_copy: Path, hub: FolderHub, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(tiny_copy, hub)
    _serve_from(hub, monkeypatch)
    with (hub.folder / "vae" / VAE[1]).open("r+b") as opened:
        opened.seek(-1, 2)
        opened.write(b"\xff")
    with pytest.raises(ChecksumError, match=VAE[1]):
        load_bundle(tiny_copy, device="cpu")


def test_the_lock_is_enforced_when_pulling_again(tiny_copy: Path, hub: FolderHub) -> None:
    before = pull(tiny_copy, hub).read_text()
    assert read_manifest(tiny_copy).components.vae.source.files
    assert pull(tiny_copy, hub).read_text() == before
    (hub.folder / "vae" / "config.json").write_text("{}")
    with pytest.raises(ChecksumError, match=r"bundle\.lock\.json"):
        pull(tiny_copy, hub)
    assert (tiny_copy / "bundle.lock.json").read_text() == before


@pytest.mark.parametrize(
    "reported",
    [
        HubFile(sha256="0" * 64, blob_id=None),
        HubFile(sha256=None, blob_id="0" * 40),
        HubFile(sha256=None, blob_id=None),
    ],
    ids=["wrong SHA-256", "wrong blob id", "no digest"],
)
def test_bytes_that_are_not_what_the_hub_says_are_refused(tiny_copy: Path, hub: FolderHub, reported: HubFile) -> None:
    hub.reported["vae/config.json"] = reported
    with pytest.raises(BundleError, match=r"config\.json"):
        pull(tiny_copy, hub)
    assert not (tiny_copy / "bundle.lock.json").exists()


def test_a_file_the_hub_lacks_is_named(tiny_copy: Path, hub: FolderHub) -> None:
    (hub.folder / "vae" / VAE[1]).unlink()
    with pytest.raises(BundleError, match=rf"no file 'vae/{VAE[1]}'"):
        pull(tiny_copy, hub)


def test_an_unpulled_snapshot_is_reported(tiny_copy: Path, hub: FolderHub, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(tiny_copy, hub)
    monkeypatch.setenv("HF_HOME", str(tiny_copy / "nowhere"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tiny_copy / "nowhere"))
    with pytest.raises(BundleError, match="was not pulled"):
        load_bundle(tiny_copy, device="cpu")
