"""Settings: environment variables `VERMOUTH_…`, each documented in `docs/settings.md`."""

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.domain import MIB, Limits

GIB = 1024 * MIB
MAX_DECODE_WORKERS = 8  # of those chosen: each holds an image of 64 megapixels
MAX_WORKERS = 16  # of those chosen: one event loop serves about ten, and each has its own activations
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of control groups v2
OTHER_VARIABLES = frozenset({"VERMOUTH_DATA_SET", "VERMOUTH_URL", "VERMOUTH_API_KEY"})  # of other commands
Origin = Annotated[
    str, Field(pattern=r"^(\*|[A-Za-z][A-Za-z0-9+.-]*://([^/?#@:\[\]\s]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?)$")
]
"""Such as `https://app.example` or `http://localhost:3000`; `*` is all."""


def _entries(value: object) -> object:
    """The entries of a comma-separated text."""
    return [entry.strip() for entry in value.split(",") if entry.strip()] if isinstance(value, str) else value


class Settings(BaseSettings):
    """All settings, read once by the server or a command; layers below the composition root never see them."""

    model_config = SettingsConfigDict(env_prefix="VERMOUTH_", env_nested_delimiter="__", extra="forbid", frozen=True)

    bundle: Path = Path("mini")
    profile: str | None = Field(None, max_length=64)
    data_dir: Path = Path("data")
    database_url: SecretStr | None = None
    blob_url: str | None = Field(None, min_length=1, max_length=2000)
    vector_dtype: Literal["fp32", "fp16"] = "fp32"
    index_kind: Literal["auto", "flat", "hnsw"] = "auto"
    index_flat_rows: int = Field(50_000, ge=0, le=100_000_000)
    index_storage: Literal["fp32", "fp16", "sq8"] = "fp32"
    follow_interval_s: float = Field(0.1, gt=0, le=60)
    host: str = Field("127.0.0.1", min_length=1, max_length=255)
    port: int = Field(8000, ge=0, le=65535)
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    lanes: int = Field(0, ge=0, le=128)
    threads: int = Field(0, ge=0, le=512)

    api_keys: SecretStr | None = None
    api_keys_file: Path | None = None
    metrics_token: SecretStr | None = Field(None, min_length=16)
    insecure: bool = False
    allowed_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_entries)] = ()
    root_path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$", max_length=255)
    trusted_proxies: str = Field("127.0.0.1,::1", max_length=2000)
    playground: bool = True

    max_batch: int = Field(0, ge=0, le=256)
    max_queue_cost: int = Field(4096, ge=1, le=1_000_000)
    feature_cache_bytes: int | None = Field(None, ge=0, le=256 * GIB)
    picture_cache_bytes: int = Field(64 * MIB, ge=0, le=256 * GIB)
    decode_workers: int = Field(0, ge=0, le=64)
    max_decode_waiting: int = Field(256, ge=1, le=100_000)
    max_in_flight: int = Field(172, ge=1, le=100_000)
    max_connections: int = Field(0, ge=0, le=1_000_000)
    max_live_connections: int = Field(256, ge=0, le=100_000)
    deadline_s: float | None = Field(None, gt=0, le=3600)
    keep_alive_s: float = Field(75.0, gt=0, le=3600)
    drain_delay_s: float = Field(2.0, ge=0, le=600)
    drain_timeout_s: float = Field(30.0, gt=0, le=3600)
    stall_s: float = Field(60.0, gt=0, le=3600)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False
    limits: Limits = Limits()

    def workers_on(self, device: str, *, is_large: bool = False) -> tuple[int, int]:
        """Passes at once on a device, and torch's threads of each.

        By default every core of a CPU runs passes of its own. Those of a large bundle share all cores, one by one:
        each takes seconds, and the activations of one take a gigabyte.
        """
        threads = self.threads or (_cores() if is_large and device == "cpu" else 1)
        chosen = min(MAX_WORKERS, max(1, _cores() // threads)) if device == "cpu" else 1
        return self.lanes or chosen, threads

    def max_batch_on(self, device: str) -> int:
        """Samples a batch on a device: `max_batch`, or the least that gives full throughput (docs/adr/0024)."""
        return self.max_batch or (8 if device == "cpu" else 32)

    @property
    def decoders(self) -> int:
        """Images decoded at once: `decode_workers`, or one for every two cores, beside the engine's workers."""
        return self.decode_workers or min(MAX_DECODE_WORKERS, max(1, _cores() // 2))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = CPU_QUOTA.read_text(encoding="ascii").partition(" ") if CPU_QUOTA.exists() else ("max", "", "")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def variables() -> list[str]:
    """Names of the environment variables of all settings."""
    flat = [name for name in Settings.model_fields if name != "limits"]
    nested = [f"limits__{field.name}" for field in fields(Limits)]
    return [f"VERMOUTH_{name.upper()}" for name in [*flat, *nested]]


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Variables with the settings' prefix that are none: a misspelt setting would be ignored silently."""
    known = {*variables(), *OTHER_VARIABLES}
    return sorted(name for name in environment if name.upper().startswith("VERMOUTH_") and name.upper() not in known)
