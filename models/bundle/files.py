"""Bundles on disk: reads the manifest, finds and checks files, computes fingerprints."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.bundle.manifest import (
    LOCK,
    MANIFEST,
    AnySource,
    HubSource,
    Lock,
    LockedSource,
    Manifest,
    PackageSource,
    PathSource,
    TaskName,
)
from models.errors import BundleError, ChecksumError
from models.transforms import PREPROCESSING_VERSION

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.|\.index\.json$")
_PICKLE = re.compile(r"\.(?:bin|ckpt|pt|pth)$")


def find_bundle(bundle: Path) -> Path:
    """Returns the folder of a bundle, given as a folder or as a name: `sd15` is `weights/sd15`.

    Raises:
        BundleError: there is none; the message lists those that are found by name.
    """
    if (bundle / MANIFEST).is_file():
        return bundle
    found = named_bundles()
    if str(bundle) in found:
        return found[str(bundle)]
    raise BundleError(f"no bundle '{bundle}': give a folder with {MANIFEST}, or a name of {', '.join(found)}")


def named_bundles() -> dict[str, Path]:
    """Returns name → folder of the bundles below `weights` in this folder and beside the installed code."""
    roots = (Path(__file__).parents[2] / "weights", Path("weights"))  # the latter wins
    return dict(sorted((file.parent.name, file.parent) for root in roots for file in root.glob(f"*/{MANIFEST}")))


def read_manifest(folder: Path, profile: str | None = None) -> Manifest:
    """Reads `bundle.json` as a profile of it, with the digests of `bundle.lock.json` filled in for hub sources.

    Raises:
        BundleError: it is missing, not JSON, or does not fit the schema, or it has no such profile.
    """
    file = folder / MANIFEST
    try:
        fields = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError) as err:
        raise BundleError(f"no {MANIFEST} in {folder}") from err
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise BundleError(f"{file} is not JSON: {err}") from err
    _apply_lock(fields, read_lock(folder))
    try:
        manifest = Manifest.model_validate(fields)
        return manifest if profile is None else _with_profile(manifest, profile)
    except ValidationError as err:
        first = err.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{file}: {field}: {first['msg']}") from err


def _with_profile(manifest: Manifest, name: str) -> Manifest:
    if name not in manifest.profiles:
        raise BundleError(f"the bundle '{manifest.name}' has no profile '{name}'")
    profile, fields = manifest.profiles[name], manifest.model_dump(mode="json")
    fields["components"] |= profile.components
    return Manifest.model_validate(fields | ({} if profile.taps is None else {"taps": profile.taps}))


def lock_files(folder: Path) -> tuple[Path, Path]:
    """Returns the two places of a bundle's lock: beside the manifest, and in HF_HOME for a read-only bundle."""
    from huggingface_hub import constants

    resolved = folder.resolve()
    key = hashlib.sha256(str(resolved).encode()).hexdigest()[:8]  # folders of one name are different bundles
    return folder / LOCK, Path(constants.HF_HOME) / "vermouth" / f"{resolved.name}-{key}.lock.json"


def read_lock(folder: Path) -> Lock:
    """Returns what `bundle pull` pinned; empty before the first pull. Raises BundleError if it is damaged."""
    pinned: dict[str, LockedSource] = {}
    for file in reversed(lock_files(folder)):  # the one beside the manifest wins
        if file.is_file():
            try:
                pinned |= Lock.model_validate(read_json(file)).root
            except ValidationError as err:
                raise BundleError(f"{file} is damaged: remove it and run `vermouth bundle pull`") from err
    return Lock(pinned)


def _apply_lock(fields: Any, lock: Lock) -> None:  # before validation: the manifest is immutable
    for name, pinned in lock.root.items():
        profile, _, part = name.rpartition("/")
        component, _, field = part.partition(".")
        try:
            source = (fields["profiles"][profile] if profile else fields)["components"][component][field or "source"]
            is_pinned = pinned.pins(HubSource.model_validate(source))
        except (KeyError, TypeError, ValidationError):
            continue  # the manifest has changed since: the source counts as not pulled
        if is_pinned:
            source |= {"revision": pinned.revision, "files": pinned.files}


def hub_sources(folder: Path, profile: str | None = None) -> dict[str, HubSource]:
    """Returns the hub sources of a bundle and of one of its profiles, by their name in the lock.

    A source is named by its component (`vae`), a second one of a component by its field (`unet.config`), and one of a
    profile by both (`taesd/vae`).
    """
    manifest = read_manifest(folder)
    found = dict(_named_sources(manifest))
    if profile is not None:
        replaced = read_manifest(folder, profile)
        names = manifest.profiles[profile].components
        own = [(name, source) for name, source in _named_sources(replaced) if name.split(".")[0] in names]
        found |= {f"{profile}/{name}": source for name, source in own}
    return {name: source for name, source in found.items() if isinstance(source, HubSource)}


def _named_sources(manifest: Manifest) -> list[tuple[str, AnySource]]:
    named = []
    for name, part in components(manifest):
        named += [(name, part.source)]
        if config := getattr(part, "config", None):
            named += [(f"{name}.config", config)]
    return named


def components(manifest: Manifest) -> list[tuple[str, Any]]:
    """Returns (name, part) of every component that the manifest names."""
    return [(name, part) for name, part in manifest.components if part is not None]


def verified(source: AnySource, bundle: Path) -> Path:
    """Returns the folder of a source after checking every file's SHA-256; fetches nothing.

    Raises:
        BundleError: a file is missing, the source lists none, the package is not installed, or the hub snapshot was
            not pulled.
        ChecksumError: a file is not the one that the manifest names.
    """
    folder = source_folder(source, bundle)
    pull = ": run `vermouth bundle pull`" if isinstance(source, HubSource) else ""
    if not source.files:
        raise BundleError(f"a source in {bundle / MANIFEST} lists no files")
    for name, digest in source.files.items():
        file = folder / name
        if not file.is_file():
            raise BundleError(f"{file} is missing{pull}")
        if sha256(file) != digest:
            raise ChecksumError(f"{file} is damaged or not the file this bundle was made of (SHA-256 differs){pull}")
    return folder


def source_folder(source: AnySource, bundle: Path) -> Path:
    """Returns where the files of a source lie. Raises BundleError if it is not pulled or not installed."""
    if isinstance(source, PathSource):
        return (bundle / source.path).resolve()
    if isinstance(source, PackageSource):
        from models.text import package_folder  # here: it imports transformers, which takes seconds

        return package_folder(source.package) / source.path
    if not source.files:
        raise BundleError(f"'{source.repo}' was not pulled: run `vermouth bundle pull {bundle}`")
    return repository_folder(source.repo) / "snapshots" / source.revision / source.path


def repository_folder(repo: str) -> Path:
    """Returns the folder of a repository in the Hugging Face cache."""
    # The layout is documented. The client's own offline look-up refuses snapshots of chosen files.
    from huggingface_hub import constants  # here: bundles without hub sources do without the client

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def sha256(file: Path) -> str:
    """Returns the hex SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def only_file(source: AnySource, folder: Path, suffix: str) -> Path:
    """Returns the source's one file of a kind. Raises BundleError if it has none, or several."""
    found = [folder / name for name in source.files if name.endswith(suffix)]
    if len(found) == 1:
        return found[0]
    advice = ""
    if suffix == ".safetensors" and any(_SHARD.search(name) for name in source.files):
        advice = ": shards are not read, name the repository's single *.safetensors file, or write one"
    elif suffix == ".safetensors" and not found and any(_PICKLE.search(name) for name in source.files):
        advice = ": pickles can run code and are not read, name the *.safetensors file of the same repository"
    raise BundleError(f"{folder} should list one *{suffix} file, not {len(found)}{advice}")


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises BundleError if the file holds none."""
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError) as err:
        raise BundleError(f"{file} is not readable JSON") from err
    if not isinstance(fields, dict):
        raise BundleError(f"{file} does not hold a JSON object")
    return fields


def fingerprint(manifest: Manifest, *, numerics: str) -> str:
    """Returns the hex digest of everything that shapes a feature (docs/adr/0002).

    The location of files, and the bundle's name, licence and metrics are left out: the same weights served the same
    way are the same model.

    Args:
        manifest: the bundle's, as the profile in use.
        numerics: `fp32`, `bf16` or `fp16`.
    """
    parts: dict[str, Any] = {}
    for name, part in components(manifest):
        # Without defaults: a field that a later release adds must not change the fingerprints of older bundles.
        settings = part.model_dump(mode="json", exclude={"source", "config"}, exclude_defaults=True)
        parts[name] = {"settings": settings, "files": sorted(part.source.files.values())}  # digests, not names
    for name, source in _named_sources(manifest):
        if name not in parts:  # a second source of a component
            parts[name] = {"files": sorted(source.files.values())}
    described = {
        "preprocessing": PREPROCESSING_VERSION,
        "noise_seed": manifest.noise_seed,
        "taps": sorted(manifest.taps),  # their order shapes nothing
        "tasks": {name: _described(manifest, name) for name in manifest.tasks},
        "components": parts,
        "numerics": numerics,
    }
    if manifest.training_free is not None:
        described["training_free"] = manifest.training_free.model_dump(mode="json")
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _described(manifest: Manifest, name: TaskName) -> dict[str, Any]:
    described = manifest.tasks[name].model_dump(mode="json", exclude={"features", "tile", "max_tiles"})
    # Without weights and tiles, which shape nothing that is stored; and as before where the vectors are.
    stored = list(manifest.compared(name))
    return described if stored == ["semantic"] else {**described, "features": stored}
