import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings, _cores, unknown_variables, variables

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    documented = re.findall(r"^\| `(VERMOUTH_[A-Z_]+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(variables())


def test_settings_come_from_the_environment_nested_limits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERMOUTH_PORT", "8123")
    monkeypatch.setenv("VERMOUTH_LIMITS__MAX_K", "7")
    settings = Settings()
    assert settings.port == 8123
    assert settings.limits.max_k == 7
    assert settings.limits.max_ways == 512


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("VERMOUTH_PORT", "70000", id="port"),
        pytest.param("VERMOUTH_MAX_BATCH", "-1", id="batch"),
        pytest.param("VERMOUTH_DEADLINE_S", "nan", id="nan"),
        pytest.param("VERMOUTH_DEVICE", "tpu", id="device"),
        pytest.param("VERMOUTH_LIMITS__MAX_K", "0", id="limit"),
        pytest.param("VERMOUTH_METRICS_TOKEN", "short", id="token"),
    ],
)
def test_values_out_of_bounds_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


def test_settings_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        Settings(colour="red")  # type: ignore[call-arg]  # the point of the test
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback(host: str, is_loopback: bool) -> None:
    assert Settings(host=host).is_loopback is is_loopback


def test_misspelt_variables_are_found() -> None:
    names = ["VERMOUTH_PORT", "VERMOUTH_PROT", "VERMOUTH_DATA_SET", "PATH"]
    assert unknown_variables(names) == ["VERMOUTH_PROT"]


@pytest.mark.parametrize(
    ("cores", "device", "given", "workers", "decoders"),
    [
        pytest.param(1, "cpu", {}, 1, 1, id="one-core"),
        pytest.param(2, "cpu", {}, 2, 1, id="laptop"),
        pytest.param(8, "cpu", {}, 8, 4, id="eight-cores"),
        pytest.param(64, "cpu", {}, 16, 8, id="server"),
        pytest.param(8, "cuda:0", {}, 1, 4, id="gpu"),
        pytest.param(8, "mps", {}, 1, 4, id="apple"),
        pytest.param(8, "cpu", {"threads": 4}, 2, 4, id="what-threads-leave"),
        pytest.param(2, "cpu", {"threads": 4}, 1, 1, id="more-threads-than-cores"),
        pytest.param(2, "cpu", {"lanes": 3, "decode_workers": 5}, 3, 5, id="as-set"),
    ],
)
def test_workers_and_decoders_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, device: str, given: dict[str, int], workers: int, decoders: int
) -> None:
    monkeypatch.setattr("app.settings._cores", lambda: cores)
    settings = Settings.model_validate(given)
    assert (settings.workers_on(device), settings.decoders) == ((workers, given.get("threads", 1)), decoders)


@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [
        pytest.param("cpu", {}, (1, 8), id="all-cores-for-one-pass"),
        pytest.param("cpu", {"threads": 4}, (2, 4), id="as-set"),
        pytest.param("cuda:0", {}, (1, 1), id="gpu"),
    ],
)
def test_passes_of_a_large_bundle_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, device: str, given: dict[str, int], expected: tuple[int, int]
) -> None:
    monkeypatch.setattr("app.settings._cores", lambda: 8)
    assert Settings.model_validate(given).workers_on(device, is_large=True) == expected


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 64), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_containers_quota_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(f"{quota}\n", encoding="ascii")
    monkeypatch.setattr("app.settings.CPU_QUOTA", path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(64)))
    assert _cores() == cores


def test_batches_are_few_on_a_cpu_and_many_on_a_gpu() -> None:
    assert (Settings().max_batch_on("cpu"), Settings().max_batch_on("cuda:0")) == (8, 32)
    assert Settings(max_batch=3).max_batch_on("cpu") == 3


def test_reading_settings_and_decoding_load_no_torch() -> None:
    """The command line starts in a second, and a decoder process stays small."""
    code = "import sys, app.settings, app.imaging.processes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
