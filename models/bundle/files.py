"""Bundles on disk: reads the manifest, finds and checks files, reads tensors strictly, computes fingerprints."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from models.bundle.manifest import LOCK, MANIFEST, AnySource, Manifest, PackageSource, PathSource
from models.errors import BundleError, ChecksumError, TensorMismatchError
from models.text import package_folder
from models.transforms import PREPROCESSING_VERSION

CLIP_TEXT_PREFIX = "clip-text-prefix"  # of CLIP text models saved before transformers 5, as in Stable Diffusion
VAE_OLD_ATTENTION = "vae-old-attention"  # of VAEs saved before diffusers 0.17, as in Stable Diffusion 1 and 2
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_ATTENTION = re.compile(r"(.*\.attentions\.\d+\.)(to_q|to_k|to_v|to_out\.0)(\.(?:weight|bias))")


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
    _apply_lock(fields, folder / LOCK)
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


def _apply_lock(fields: Any, lock: Path) -> None:  # before validation: the manifest is immutable
    if not lock.is_file():
        return
    for name, pinned in read_json(lock).items():
        try:
            fields["components"][name]["source"].update(pinned)
        except (AttributeError, KeyError, TypeError, ValueError) as err:
            raise BundleError(f"{lock} does not fit the manifest at '{name}': run `vermouth bundle pull`") from err


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
    folder = _resolve(source, bundle)
    if not source.files:
        raise BundleError(f"a source in {bundle / MANIFEST} lists no files")
    for name, digest in source.files.items():
        file = folder / name
        if not file.is_file():
            raise BundleError(f"{file} is missing")
        if sha256(file) != digest:
            raise ChecksumError(f"{file} is damaged or not the file this bundle was made of (SHA-256 differs)")
    return folder


def _resolve(source: AnySource, bundle: Path) -> Path:
    if isinstance(source, PathSource):
        return (bundle / source.path).resolve()
    if isinstance(source, PackageSource):
        return package_folder(source.package) / source.path
    if not source.files:
        raise BundleError(f"'{source.repo}' is not locked: run `vermouth bundle pull`")
    from huggingface_hub import snapshot_download  # here: bundles without hub sources do without the client
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(source.repo, revision=source.revision, local_files_only=True)
    except LocalEntryNotFoundError as err:
        raise BundleError(f"'{source.repo}' at {source.revision} was not pulled: run `vermouth bundle pull`") from err
    return Path(found) / source.path


def sha256(file: Path) -> str:
    """Returns the hex SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def only_file(source: AnySource, folder: Path, suffix: str) -> Path:
    """Returns the source's one file of a kind. Raises BundleError if it has none, or several."""
    found = [folder / name for name in source.files if name.endswith(suffix)]
    if len(found) != 1:
        raise BundleError(f"{folder} should list one *{suffix} file, not {len(found)}")
    return found[0]


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises BundleError if the file holds none."""
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError) as err:
        raise BundleError(f"{file} is not readable JSON") from err
    if not isinstance(fields, dict):
        raise BundleError(f"{file} does not hold a JSON object")
    return fields


def read_tensors(
    file: Path, wanted: Mapping[str, torch.Tensor], *, ignored: Collection[str] = (), key_map: str | None = None
) -> dict[str, torch.Tensor]:
    """Reads exactly the tensors of a module, floating ones as float32.

    Args:
        file: a safetensors file.
        wanted: the module's state dict, for names and shapes (tensors may be on `meta`).
        ignored: names of further tensors that the file may hold: those of removed blocks.
        key_map: how the file names the tensors; None for the module's own names.

    Raises:
        TensorMismatchError: a tensor is missing, unknown or of another shape.
        BundleError: the file is not safetensors, or there is no such key map.
    """
    try:
        with safe_open(file, framework="pt") as opened:  # no pickle: reading executes nothing
            held = set(opened.keys())
            stored = {name: stored_name(key_map, name) for name in (*wanted, *ignored)}
            if missing := sorted({stored[name] for name in wanted} - held):
                raise TensorMismatchError(f"{file} lacks the tensor '{missing[0]}' ({len(missing)} missing)")
            if extra := sorted(held - set(stored.values()) - set(ignored)):
                raise TensorMismatchError(f"{file} holds the unknown tensor '{extra[0]}' ({len(extra)} too many)")
            tensors = {}
            for name, like in wanted.items():
                tensor = opened.get_tensor(stored[name])
                is_kernel = tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
                # Some of these files store attention as 1×1 convolutions.
                if key_map == VAE_OLD_ATTENTION and is_kernel and _ATTENTION.fullmatch(name):
                    tensor = tensor[:, :, 0, 0]
                if tensor.shape != like.shape:
                    raise TensorMismatchError(
                        f"{file}: the tensor '{name}' is {tuple(tensor.shape)}, not {tuple(like.shape)}"
                    )
                tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
            return tensors
    except (SafetensorError, OSError) as err:
        raise BundleError(f"{file} is not a readable safetensors file") from err


def stored_name(key_map: str | None, name: str) -> str:
    """Returns the name that a file gives a module's tensor. Raises BundleError if there is no such key map."""
    if key_map is None:
        return name
    if key_map == CLIP_TEXT_PREFIX:
        return f"text_model.{name}"
    if key_map == VAE_OLD_ATTENTION:
        found = _ATTENTION.fullmatch(name)
        return f"{found[1]}{_OLD_ATTENTION[found[2]]}{found[3]}" if found else name
    raise BundleError(f"no key map '{key_map}'")


def fingerprint(manifest: Manifest, *, numerics: str) -> str:
    """Returns the hex digest of everything that shapes a feature (docs/adr/0002).

    The location of files, and the bundle's name, licence and metrics are left out: the same weights served the same
    way are the same model.

    Args:
        manifest: the bundle's, as the profile in use.
        numerics: `fp32`, `bf16` or `fp16`.
    """
    parts = {}
    for name, part in components(manifest):
        # Without defaults: a field that a later release adds must not change the fingerprints of older bundles.
        settings = part.model_dump(mode="json", exclude={"source"}, exclude_defaults=True)
        parts[name] = {"settings": settings, "files": sorted(part.source.files.values())}  # digests, not names
    described = {
        "preprocessing": PREPROCESSING_VERSION,
        "noise_seed": manifest.noise_seed,
        "taps": sorted(manifest.taps),  # their order shapes nothing
        "tasks": {name: task.model_dump(mode="json") for name, task in manifest.tasks.items()},
        "components": parts,
        "numerics": numerics,
    }
    if manifest.training_free is not None:
        described["training_free"] = manifest.training_free.model_dump(mode="json")
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
