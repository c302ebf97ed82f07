"""The manifests in the repository: they fit the schema, and they pin nothing that was not pulled."""

import json
import random
import shutil
from pathlib import Path

import pytest

from models.bundle.files import components, find_bundle, hub_sources, named_bundles, read_manifest, verified
from models.bundle.summary import summarize
from models.errors import BundleError
from tests.models.bundle.conftest import redirected
from tests.models.bundle.hub import local_hub
from tests.models.bundle.test_pull import run

WEIGHTS = Path(__file__).parents[3] / "weights"
PROFILES = (None, "taesd", "cleandift", "dinov2", "resnet18")


@pytest.mark.parametrize("profile", PROFILES, ids=str)
@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_a_shipped_manifest_and_its_profiles_fit_the_schema(name: str, profile: str | None) -> None:
    manifest = read_manifest(WEIGHTS / name, profile)
    assert manifest.name == name
    assert manifest.training_free is not None
    assert {task.resolution for task in manifest.tasks.values()} == {256, 512}
    assert (profile == "cleandift") == manifest.components.unet.is_noiseless
    added = {"taesd": {"taesd/vae"}, "cleandift": {"cleandift/unet", "cleandift/unet.config"}, None: set()}
    own = added.get(profile, {f"{profile}/expert"})
    shared = {"vae", "unet", "scheduler", "text", "captioner", "clip"}
    assert set(hub_sources(WEIGHTS / name, profile)) == shared | own


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_a_shipped_manifest_names_branches_and_no_digests(name: str) -> None:
    assert '"files"' not in (WEIGHTS / name / "bundle.json").read_text()
    assert {source["revision"] for source in _raw_sources(name)} == {"main", "refs/pr/38"}


def _raw_sources(name: str) -> list[dict[str, str]]:
    fields = json.loads((WEIGHTS / name / "bundle.json").read_text())
    sets = [fields["components"], *(profile["components"] for profile in fields["profiles"].values())]
    return [part["source"] for parts in sets for part in parts.values()]


def test_bundles_are_found_by_name_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_bundle(WEIGHTS / "mini") == WEIGHTS / "mini"
    monkeypatch.chdir(tmp_path)
    assert find_bundle(Path("sd15")) == WEIGHTS / "sd15"
    (tmp_path / "weights" / "sd15").mkdir(parents=True)
    (tmp_path / "weights" / "sd15" / "bundle.json").write_text("{}")
    assert find_bundle(Path("sd15")) == Path("weights/sd15"), "the user's own folder wins"
    assert {"mini", "sd15", "sd21"} <= set(named_bundles())
    with pytest.raises(BundleError, match=r"no bundle 'sd99': give a folder with bundle\.json, or a name of mini, "):
        find_bundle(Path("sd99"))


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_a_shipped_bundle_and_its_profiles_are_pulled_from_the_real_repositories_and_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(WEIGHTS / name, tmp_path / name))
    repositories: dict[str, Path] = {}
    for profile in PROFILES:  # contents do not matter here
        for source in hub_sources(bundle, profile).values():
            folder = repositories.setdefault(source.repo, tmp_path / "hub" / source.repo)
            for wanted in source.wanted:
                file = folder / source.path / wanted
                file.parent.mkdir(parents=True, exist_ok=True)
                size = 30_000 if file.suffix == ".safetensors" else 300
                file.write_bytes(random.Random(str(file)).randbytes(size))
    with local_hub(repositories) as hub, redirected(hub, tmp_path / "huggingface", monkeypatch):
        hub.revisions.add("refs/pr/38")
        assert not summarize(bundle).is_complete
        for profile in PROFILES:
            run(bundle, profile)
    summary = summarize(bundle)
    assert summary.is_complete
    assert all(summary.profiles.values())
    assert set(summary.fingerprints) == {"fp32", "bf16", "fp16"}
    fingerprints = {summarize(bundle, profile).fingerprints["fp32"] for profile in PROFILES}
    assert len(fingerprints) == len(PROFILES), "each profile is a model of its own"
    for profile in PROFILES:
        for _, part in components(read_manifest(bundle, profile)):
            verified(part.source, bundle)  # what the server reads
