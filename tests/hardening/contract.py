"""schemathesis over every route: `python -m tests.hardening.contract --tool PATH --examples N --seed S`.

Against a real server process over a fake device. It checks that there is no status from 500 on but 503, 504 and 507,
and that no answer is outside the OpenAPI document: its status, content type, headers and schema. The tool is no
dependency: `pip install schemathesis` into an environment of its own.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from tests.app.api.images import BAR, CROSS
from tests.app.test_server import started

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504, 507]
"""


def run(tool: str, *, examples: int, seed: int, folder: Path) -> int:
    """Run the tool, whose report goes to stdout, and return its exit code."""
    (folder / "schemathesis.toml").write_text(CONFIG, encoding="utf-8")
    limit_s = 60.0 * examples + 600
    with started("free", folder / "data", limit_s=limit_s, MAX_IN_FLIGHT="64") as process, process.connect() as client:
        process.wait_for("ready")
        _fill(client)
        base = str(client.base_url).rstrip("/")
        command = [tool, "--config-file", "schemathesis.toml", "run", f"{base}/openapi.json", "--url", base]
        command += ["--checks", ",".join(CHECKS), "--max-examples", str(examples), "--seed", str(seed)]
        code = subprocess.run([*command, "--no-color"], cwd=folder, check=False).returncode
        if client.get("/livez").status_code != 200:
            sys.stdout.write("the server is not alive\n")
            return 1
    return code


def _fill(client: httpx.Client) -> None:
    """Something that routes can find."""
    for name, image in (("a", BAR), ("b", CROSS)):
        client.put(
            f"/galleries/default/items/{name}", json={"image": image, "metadata": {"kind": name}}
        ).raise_for_status()
    ways = [{"label": "bar", "support": [BAR]}, {"label": "cross", "support": [CROSS]}]
    client.post("/fewshot/episodes", json={"ways": ways}).raise_for_status()
    client.put("/class-sets/default", json={"classes": ["house", "tree"]}).raise_for_status()


def main() -> int:
    """Run and return the tool's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", default=shutil.which("schemathesis"))
    parser.add_argument("--examples", type=int, default=200, help="of each operation")
    parser.add_argument("--seed", type=int, default=22)
    chosen = parser.parse_args()
    if chosen.tool is None:
        parser.error("schemathesis is not on the PATH: name it with --tool")
    with tempfile.TemporaryDirectory() as folder:
        return run(chosen.tool, examples=chosen.examples, seed=chosen.seed, folder=Path(folder))


if __name__ == "__main__":
    sys.exit(main())
