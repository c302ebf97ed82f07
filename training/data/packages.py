"""Where the training pictures come from: packages fetched by name with their own clients, and nothing else."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError

NPM_PACKAGES = (
    "openmoji",
    "emoji-datasource-google",
    "emoji-datasource-twitter",
    "fluentui-emoji",
    "@phosphor-icons/core",
)
DEBIAN_PACKAGE = "openclipart-png"
_INSTALLED_CLIPART = Path("/usr/share/openclipart/png")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """Unpacked sources.

    Attributes:
        npm: a `node_modules` folder with `NPM_PACKAGES`.
        clipart: the `png` folder of openclipart.
    """

    npm: Path
    clipart: Path

    def versions(self) -> dict[str, str]:
        """Version of every npm package, as its own package.json says."""
        return {
            name: str(json.loads((self.npm / name / "package.json").read_text())["version"]) for name in NPM_PACKAGES
        }


def fetch_packages(cache: Path, *, npm: Path | None = None) -> Packages:
    """Makes all packages available, fetching what is missing.

    Args:
        cache: folder for what has to be fetched.
        npm: an existing `node_modules` folder to use instead.

    Raises:
        DataError: `npm` is no folder, a client is not installed or its fetch failed.
    """
    if npm is not None and not npm.is_dir():
        raise DataError(f"{npm} is no folder: name an existing node_modules")
    return Packages(npm=npm or _fetch_npm(cache), clipart=_find_clipart(cache))


def _fetch_npm(cache: Path) -> Path:
    modules = cache / "npm" / "node_modules"
    missing = [name for name in NPM_PACKAGES if not (modules / name / "package.json").is_file()]
    if missing:
        modules.parent.mkdir(parents=True, exist_ok=True)
        (modules.parent / "package.json").write_text('{"private": true}\n')
        _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *missing], modules.parent)
    return modules


def _find_clipart(cache: Path) -> Path:
    if _INSTALLED_CLIPART.is_dir():
        return _INSTALLED_CLIPART
    root = cache / "debian"
    pictures = root / "usr" / "share" / "openclipart" / "png"
    if not pictures.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", DEBIAN_PACKAGE], root)
        for archive in sorted(root.glob(f"{DEBIAN_PACKAGE}_*.deb")):
            _run(["dpkg", "-x", archive.name, "."], root)
    return pictures


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise DataError(f"'{command[0]}' is needed to fetch the training packages and is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataError(f"'{' '.join(command)}' failed with exit code {done.returncode}: {done.stderr.strip()[-400:]}")
