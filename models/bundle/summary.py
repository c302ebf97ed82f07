"""What a bundle is and whether its files are here, without loading it: `vermouth bundle list` and `show`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.bundle.files import components, fingerprint, read_manifest, source_folder
from models.bundle.manifest import AnySource, HubSource, Manifest, PackageSource, TaskConfig, TaskName
from models.errors import BundleError
from models.types import FEATURES

NUMERICS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentSummary:
    """A component's source.

    Attributes:
        origin: `hub:OWNER/NAME`, `package:NAME` or `path:FOLDER`.
        revision: the pinned commit, or the branch before the first pull; empty for other sources.
        size_bytes: of the files that are here.
        missing: files that are not.
    """

    name: str
    origin: str
    revision: str
    files: tuple[str, ...]
    size_bytes: int
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSummary:
    """A bundle as one of its profiles.

    Attributes:
        is_complete: every file is here; `vermouth bundle verify` checks their contents too.
        heads: `trained` or `training-free`.
        fingerprints: by numerics class; empty for a bundle that is not complete.
        profiles: name → whether it is complete.
    """

    name: str
    folder: Path
    licence: str
    attribution: str
    good_for: str
    is_complete: bool
    size_bytes: int
    heads: str
    features: tuple[str, ...]
    taps: tuple[str, ...]
    tasks: Mapping[TaskName, TaskConfig]
    components: tuple[ComponentSummary, ...]
    fingerprints: dict[str, str]
    profiles: dict[str, bool]


def summarize(folder: Path, profile: str | None = None) -> BundleSummary:
    """Returns a bundle's summary. Raises BundleError if the manifest cannot be read or has no such profile."""
    manifest = read_manifest(folder, profile)
    parts = _components(manifest, folder)
    is_complete = not any(part.missing for part in parts)
    return BundleSummary(
        name=manifest.name,
        folder=folder,
        licence=manifest.licence,
        attribution=manifest.attribution,
        good_for=manifest.good_for,
        is_complete=is_complete,
        size_bytes=sum(part.size_bytes for part in parts),
        heads="trained" if manifest.training_free is None else "training-free",
        features=FEATURES,
        taps=manifest.taps,
        tasks=manifest.tasks,
        components=tuple(parts),
        fingerprints={kind: fingerprint(manifest, numerics=kind) for kind in NUMERICS} if is_complete else {},
        profiles={
            name: not any(part.missing for part in _components(read_manifest(folder, name), folder))
            for name in manifest.profiles
        },
    )


def _components(manifest: Manifest, folder: Path) -> list[ComponentSummary]:
    return [_component(name, part.source, folder) for name, part in components(manifest)]


def _component(name: str, source: AnySource, bundle: Path) -> ComponentSummary:
    files = tuple(source.files) or (source.wanted if isinstance(source, HubSource) else ())
    try:
        found = source_folder(source, bundle)
        missing = tuple(file for file in files if not (found / file).is_file())
        size = sum((found / file).stat().st_size for file in files if file not in missing)
    except BundleError:  # not pulled, or the package is not installed
        missing, size = files, 0
    if isinstance(source, HubSource):
        origin = f"hub:{source.repo}"
    else:
        origin = f"package:{source.package}" if isinstance(source, PackageSource) else f"path:{source.path}"
    return ComponentSummary(
        name=name,
        origin=origin,
        revision=source.revision if isinstance(source, HubSource) else "",
        files=files,
        size_bytes=size,
        missing=missing,
    )
