"""Pulling hub sources from a local hub: what is pinned, every failure, and what a later pull makes of it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.download import HubFile
from models.bundle.files import lock_files, read_lock, read_manifest, sha256
from models.bundle.pull import Plan, pull
from models.errors import BundleError, ChecksumError
from tests.models.bundle.conftest import REPO, WANTED, WEIGHTS, edit_source, hub_source
from tests.models.bundle.hub import COMMIT, TOKEN, LocalHub


@dataclass
class Seen:
    """What a listener was shown."""

    plans: list[Plan] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    missing_bytes: list[int] = field(default_factory=list)
    arrived: int = 0

    def planned(self, plan: Plan) -> None:
        self.plans.append(plan)

    def started(self, file: HubFile, missing_bytes: int) -> None:
        self.files.append(file.name)
        self.missing_bytes.append(missing_bytes)

    def advanced(self, count: int) -> None:
        self.arrived += count


def run(bundle: Path, profile: str | None = None) -> Seen:
    seen = Seen()
    pull(bundle, seen, profile=profile, wait_s=0)
    return seen


def size_of(hub: LocalHub, *names: str) -> int:
    return sum((hub.repositories[REPO] / name).stat().st_size for name in names)


pytestmark = pytest.mark.usefixtures("cache")

ALL = [f"{folder}/{name}" for folder in ("vae", "unet") for name in WANTED]


def test_a_pulled_bundle_is_pinned_and_loads_without_the_hub(
    hub_bundle: Path, hub: LocalHub, tiny: LoadedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = run(hub_bundle)
    assert seen.plans[0].missing_bytes == seen.arrived == size_of(hub, *ALL)
    assert {row.name: row.size_bytes for row in seen.plans[0].sources} == {
        part: size_of(hub, f"{part}/config.json", f"{part}/{WEIGHTS}") for part in ("vae", "unet")
    }
    pinned: dict[str, Any] = json.loads((hub_bundle / "bundle.lock.json").read_text())
    repository = hub.repositories[REPO]
    assert pinned == {
        part: {
            "repo": REPO,
            "requested": "main",
            "revision": COMMIT,
            "files": {name: sha256(repository / part / name) for name in WANTED},
        }
        for part in ("vae", "unet")
    }
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.failures.status = 500
    assert load_bundle(hub_bundle, device="cpu").info.fingerprint == tiny.info.fingerprint


def test_other_programs_find_what_was_pulled(hub_bundle: Path, hub: LocalHub, cache: Path) -> None:
    run(hub_bundle)
    hub.failures.status = 500
    for name in ALL:
        found = huggingface_hub.hf_hub_download(REPO, name, revision=COMMIT, cache_dir=cache, local_files_only=True)
        assert Path(found).is_symlink()
        assert sha256(Path(found)) == sha256(hub.repositories[REPO] / name)


def test_what_other_programs_downloaded_is_used(hub_bundle: Path, hub: LocalHub, cache: Path) -> None:
    code = f"import huggingface_hub as h; h.hf_hub_download('{REPO}', 'unet/{WEIGHTS}', cache_dir='{cache}')"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}  # read when it is imported
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert f"unet/{WEIGHTS}" not in run(hub_bundle).files


def test_pulling_a_complete_bundle_again_asks_nobody(
    hub_bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(hub_bundle)
    before = (hub_bundle / "bundle.lock.json").read_text()
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    seen = Seen()
    assert pull(hub_bundle, seen) is None
    assert not seen.plans
    assert not hub.requests
    assert (hub_bundle / "bundle.lock.json").read_text() == before


def test_a_profile_is_pulled_beside_the_rest(hub_bundle: Path) -> None:
    run(hub_bundle)
    # Its weights are the bytes of the first VAE: only the other configuration is downloaded.
    assert run(hub_bundle, "other").files == ["other_vae/config.json"]
    assert set(read_lock(hub_bundle).root) == {"vae", "unet", "other/vae"}
    assert load_bundle(hub_bundle, device="cpu", profile="other").encoder.extractor.backbone.scaling_factor == 0.5
    with pytest.raises(BundleError, match="no profile 'nobody'"):
        run(hub_bundle, "nobody")


def test_an_unpulled_profile_is_reported(hub_bundle: Path) -> None:
    run(hub_bundle)
    with pytest.raises(BundleError, match="was not pulled: run `vermouth bundle pull"):
        load_bundle(hub_bundle, device="cpu", profile="other")


@pytest.mark.parametrize("drops", [1, 3, 12])
def test_a_broken_connection_is_resumed_where_it_broke(hub_bundle: Path, hub: LocalHub, drops: int) -> None:
    hub.failures.drop_after_bytes = 50_000
    hub.failures.drops = drops
    assert run(hub_bundle).arrived == size_of(hub, *ALL)
    assert hub.sent[WEIGHTS] == size_of(hub, f"vae/{WEIGHTS}", f"unet/{WEIGHTS}")


def test_a_pull_after_a_failed_one_continues(hub_bundle: Path, hub: LocalHub) -> None:
    hub.failures.drop_after_bytes = 0
    with pytest.raises(BundleError, match=r"the connection broke .*pull again"):
        run(hub_bundle)
    hub.failures.drop_after_bytes, hub.failures.drops = 100_000, 1
    hub.failures.status = None
    seen = run(hub_bundle)
    assert seen.arrived == size_of(hub, *ALL)


def test_a_partial_file_of_an_earlier_process_is_completed(hub_bundle: Path, hub: LocalHub, cache: Path) -> None:
    file = hub.repositories[REPO] / "unet" / WEIGHTS
    blobs = cache / "models--someone--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(file)}.incomplete").write_bytes(file.read_bytes()[:300_000])
    seen = run(hub_bundle)
    assert seen.plans[0].missing_bytes == seen.arrived == size_of(hub, *ALL) - 300_000
    assert not list(blobs.glob("*.incomplete"))


@pytest.mark.parametrize("no_ranges", [False, True], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("extra", [0, 5000], ids=["wrong bytes", "too many bytes"])
def test_a_damaged_partial_file_is_downloaded_again(
    hub_bundle: Path, hub: LocalHub, cache: Path, no_ranges: bool, extra: int
) -> None:
    hub.failures.no_ranges = no_ranges
    file = hub.repositories[REPO] / "vae" / WEIGHTS
    blobs = cache / "models--someone--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(file)}.incomplete").write_bytes(b"x" * (file.stat().st_size + extra if extra else 4000))
    run(hub_bundle)
    assert sha256(cache / f"models--someone--model/snapshots/{COMMIT}/vae/{WEIGHTS}") == sha256(file)


def test_bytes_damaged_on_the_way_are_fetched_once_more(hub_bundle: Path, hub: LocalHub) -> None:
    hub.failures.damaged, hub.failures.damaged_times = {WEIGHTS}, 1
    run(hub_bundle)
    load_bundle(hub_bundle, device="cpu")


def test_wrong_bytes_are_refused_and_removed(hub_bundle: Path, hub: LocalHub, cache: Path) -> None:
    hub.failures.damaged = {WEIGHTS}
    with pytest.raises(ChecksumError, match=f"other bytes than it lists for 'vae/{WEIGHTS}' of '{REPO}'"):
        run(hub_bundle)
    assert not (hub_bundle / "bundle.lock.json").exists()
    names = [path.name for path in (cache / "models--someone--model" / "blobs").iterdir()]
    assert all(len(name) == 40 for name in names), "only the small file, by its blob id"


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_damaged_in_the_cache_is_refused_by_the_server_and_healed_by_a_pull(
    hub_bundle: Path, cache: Path, name: str, tiny: LoadedBundle
) -> None:
    run(hub_bundle)
    before = (hub_bundle / "bundle.lock.json").read_text()
    with (cache / f"models--someone--model/snapshots/{COMMIT}/unet/{name}").open("r+b") as opened:
        opened.write(b"\xff\xff")
    with pytest.raises(ChecksumError, match=r"damaged.*run `vermouth bundle pull`"):
        load_bundle(hub_bundle, device="cpu")
    assert run(hub_bundle).files == [f"unet/{name}"]
    assert load_bundle(hub_bundle, device="cpu").info.fingerprint == tiny.info.fingerprint
    assert (hub_bundle / "bundle.lock.json").read_text() == before


def test_a_cleared_cache_is_reported_and_pulled_again_at_the_same_commit(
    hub_bundle: Path, hub: LocalHub, cache: Path
) -> None:
    run(hub_bundle)
    shutil.rmtree(cache)
    with pytest.raises(BundleError, match=r"is missing: run `vermouth bundle pull`"):
        load_bundle(hub_bundle, device="cpu")
    hub.revisions.discard("main")  # the branch has moved on
    assert run(hub_bundle).arrived == size_of(hub, *ALL)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_the_lock_outranks_the_hub(hub_bundle: Path, hub: LocalHub, cache: Path, name: str) -> None:
    run(hub_bundle)
    before = (hub_bundle / "bundle.lock.json").read_text()
    shutil.rmtree(cache)
    with (hub.repositories[REPO] / "vae" / name).open("ab") as opened:
        opened.write(b" ")
    with pytest.raises(ChecksumError, match="lock"):
        run(hub_bundle)
    assert (hub_bundle / "bundle.lock.json").read_text() == before


def test_a_changed_manifest_needs_a_new_pull(hub_bundle: Path, hub: LocalHub) -> None:
    run(hub_bundle)
    hub.repositories["someone/else"] = hub.repositories[REPO]
    edit_source(hub_bundle, "vae", repo="someone/else")
    with pytest.raises(BundleError, match="'someone/else' was not pulled"):
        load_bundle(hub_bundle, device="cpu")
    run(hub_bundle)
    assert read_lock(hub_bundle).root["vae"].repo == "someone/else"
    load_bundle(hub_bundle, device="cpu")


def test_the_lock_of_a_read_only_bundle_lies_in_hf_home(
    hub_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        seen = Seen()
        lock = pull(hub_bundle, seen)
    assert lock == lock_files(hub_bundle)[1]
    assert lock is not None
    assert lock.parent == cache.parent / "vermouth"
    assert not (hub_bundle / "bundle.lock.json").exists()
    load_bundle(hub_bundle, device="cpu")


def test_a_source_may_not_leave_its_folder(hub_bundle: Path) -> None:
    changes: list[dict[str, Any]] = [{"wanted": ["../../../etc/passwd"]}, {"path": "/etc"}, {"wanted": []}]
    for fields in changes:
        edit_source(hub_bundle, "vae", **hub_source("vae") | fields)
        with pytest.raises(BundleError, match=r"components\.vae"):
            read_manifest(hub_bundle)


# Failures, each with its sentence.


def test_a_refused_connection(hub_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BundleError, match=r"^http://127.0.0.1:9 refuses the connection: is HF_ENDPOINT"):
        run(hub_bundle)


def test_a_machine_without_a_network(hub_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://hub.invalid")
    with pytest.raises(BundleError, match=r"^http://hub.invalid cannot be reached: this machine seems to be offline$"):
        run(hub_bundle)


def test_the_offline_flag(hub_bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BundleError, match="not complete in the cache and HF_HUB_OFFLINE is set: unset it"):
        run(hub_bundle)
    assert not hub.requests


def test_a_silent_hub(hub_bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.failures.bytes_per_second = 1
    with pytest.raises(BundleError, match=r"did not answer within 0\.2 s"):
        run(hub_bundle)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repo": "no/such"}, "has no 'no/such', or it is private: correct the name, or log in with `hf auth login`"),
        ({"repo": "a/b/c"}, "'a/b/c' is not a repository: write OWNER/NAME"),
        ({"revision": "v9"}, "'someone/model' has no revision 'v9'"),
        ({"wanted": ["model.bin"]}, f"'someone/model' at {COMMIT} has no file 'vae/model.bin'"),
    ],
    ids=["repository", "name", "revision", "file"],
)
def test_what_is_not_found(hub_bundle: Path, fields: dict[str, Any], message: str) -> None:
    edit_source(hub_bundle, "vae", **fields)
    with pytest.raises(BundleError, match=message):
        run(hub_bundle)


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        (
            "gated",
            r"'someone/model' is gated: accept its terms at http://.*/someone/model, log in with `hf auth login`",
        ),
        ("private", r"has no 'someone/model', or it is private: .*log in with `hf auth login` or set HF_TOKEN"),
    ],
)
def test_a_repository_that_needs_a_login(
    hub_bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, switch: str, message: str
) -> None:
    setattr(hub.failures, switch, True)
    with pytest.raises(BundleError, match=message):
        run(hub_bundle)
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # the store asserts that it never sees it
    run(hub_bundle)
    load_bundle(hub_bundle, device="cpu")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, r"refuses access to 'someone/model' \(status 403\)"),
        (429, "limits the number of requests"),
        (503, "with status 503: try again later"),
    ],
)
def test_a_status(hub_bundle: Path, hub: LocalHub, status: int, message: str) -> None:
    hub.failures.status = status
    with pytest.raises(BundleError, match=message):
        run(hub_bundle)


def test_a_captive_portal(hub_bundle: Path, hub: LocalHub) -> None:
    hub.failures.is_html = True
    with pytest.raises(BundleError, match="cannot be read: is a proxy in between"):
        run(hub_bundle)


def test_a_disk_without_room_is_refused_before_the_first_byte(
    hub_bundle: Path, hub: LocalHub, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(mounted / "hub"))
    with pytest.raises(BundleError, match=r"GB are to be downloaded and 0\.0 GB are free in .*set HF_HOME"):
        run(hub_bundle)
    assert not hub.sent
    assert not list((mounted / "hub").iterdir())


def test_a_disk_that_fills_up_is_reported_and_what_arrived_is_used(
    hub_bundle: Path, hub: LocalHub, cache: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(mounted / "hub"))
    with monkeypatch.context() as patch:  # another program takes the room after the check
        patch.setattr("models.bundle.pull._check_room", lambda _: None)
        with pytest.raises(BundleError, match=r"the disk of .* is full: free some space or set HF_HOME"):
            run(hub_bundle)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    shutil.copytree(mounted / "hub", cache, symlinks=True)
    arrived = sum(file.stat().st_size for file in (cache / "models--someone--model" / "blobs").iterdir())
    assert arrived > 500_000
    assert run(hub_bundle).arrived == size_of(hub, *ALL) - arrived


def test_a_cache_that_cannot_be_written(hub_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/sys/kernel/hub")  # for the superuser too
    with pytest.raises(BundleError, match=r"/sys/kernel.* is not writable: set HF_HOME to a folder that is"):
        run(hub_bundle)
