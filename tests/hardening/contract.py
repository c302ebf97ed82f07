"""schemathesis over every route: `python -m tests.hardening.contract --tool PATH --examples N --seed S`.

Against a real server process over a fake device. It checks that there is no status from 500 on but 503, 504 and 507,
and that no answer is outside the OpenAPI document: its status, content type, headers and schema. The tool is no
dependency of the project: it is installed into an environment of its own.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx

from tests.app.api.images import BAR, CROSS
from tests.app.test_server import WAIT_S, started

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
# Values that reach the logic behind the checks, most of the time.
CONFIGURATION = """
hooks = "hooks"
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504, 507]
[dictionaries]
timeouts.values = [20000, 30000]
versions.values = ["*", '"1"', '"2"']
names.values = ["default", "s", "g"]
ids.values = ["a", "b"]
codes.values = ["invalid", "not-found"]
fields.values = ["kind"]
[parameters]
"X-Request-Timeout-Ms" = { dictionary = "timeouts", probability = 0.95 }
"If-Match" = { dictionary = "versions", probability = 0.7 }
name = { dictionary = "names", probability = 0.7 }
item_id = { dictionary = "ids", probability = 0.7 }
code = { dictionary = "codes", probability = 0.5 }
field = { dictionary = "fields", probability = 0.5 }
"""
# The tool sends the least value of a header with most requests: a deadline of 1 ms would end them all, and a key that
# was used would refuse them.
HOOKS = """
import random
import schemathesis

@schemathesis.hook
def before_call(context, case, **options):
    headers = case.headers or {}
    if str(headers.get("X-Request-Timeout-Ms")) == "1":
        headers["X-Request-Timeout-Ms"] = "20000"
    if headers.get("Idempotency-Key") and random.random() < 0.8:
        headers["Idempotency-Key"] += str(random.random())
"""
INSTALL = "python3 -m venv /tmp/schemathesis && /tmp/schemathesis/bin/pip install schemathesis"
_COUNT = re.compile(r'^http_requests_total\{method="(\w+)",route="([^"]+)",status="(\d+)"\} ([\d.e+]+)', re.M)


def run(tool: str, options: Sequence[str], *, limit_s: float, folder: Path) -> int:
    """Run the tool, whose report goes to stdout, print what the server counted, and return the tool's exit code."""
    (folder / "schemathesis.toml").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "hooks.py").write_text(HOOKS, encoding="utf-8")
    server = started("free", folder / "data", limit_s=limit_s + 60, MAX_IN_FLIGHT="64")
    with server as process, process.connect() as client:
        process.wait_for("ready")
        _fill(client)
        base = str(client.base_url).rstrip("/")
        before = _answers(client)
        command = [tool, "--config-file", "schemathesis.toml", "run", f"{base}/openapi.json", "--url", base]
        command += ["--no-color", "--request-timeout", str(WAIT_S), "--checks", ",".join(CHECKS)]
        command += ["--continue-on-failure", *options]
        code = subprocess.run(command, cwd=folder, check=False, timeout=limit_s).returncode
        answers = _answers(client) - before
    statuses: Counter[str] = Counter()
    for (_, _, status), count in answers.items():
        statuses[status] += count
    routes = {(method, route) for method, route, status in answers if status not in ("404", "405")}
    counts = ", ".join(f"{status} x {count}" for status, count in sorted(statuses.items()))
    sys.stdout.write(f"requests {answers.total()} to {len(routes)} operations: {counts}\n")
    return code


def _answers(client: httpx.Client) -> Counter[tuple[str, str, str]]:
    """How many requests the server has answered, by method, route and status."""
    text = client.get("/metrics").text
    return Counter({(found[1], found[2], found[3]): int(float(found[4])) for found in _COUNT.finditer(text)})


def _fill(client: httpx.Client) -> None:
    """Add something that routes can find."""
    for name, image in (("a", BAR), ("b", CROSS)):
        item = {"image": image, "metadata": {"kind": name}}
        client.put(f"/galleries/default/items/{name}", json=item).raise_for_status()
    ways = [{"label": "bar", "support": [BAR]}, {"label": "cross", "support": [CROSS]}]
    client.post("/fewshot/episodes", json={"ways": ways}).raise_for_status()
    client.put("/class-sets/default", json={"classes": ["house", "tree"]}).raise_for_status()


def main() -> int:
    """Run and return the tool's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", default=shutil.which("schemathesis", path="/tmp/schemathesis/bin"), help=INSTALL)
    parser.add_argument("--examples", type=int, default=200, help="of each operation")
    parser.add_argument("--seed", type=int, default=22)
    parser.add_argument("--limit-s", type=float, default=3600)
    chosen, others = parser.parse_known_args()  # others go to the tool
    if chosen.tool is None:
        parser.error(f"schemathesis is not installed: {INSTALL}")
    options = ["--max-examples", str(chosen.examples), "--seed", str(chosen.seed), *others]
    with tempfile.TemporaryDirectory() as folder:
        return run(chosen.tool, options, limit_s=chosen.limit_s, folder=Path(folder))


if __name__ == "__main__":
    sys.exit(main())
