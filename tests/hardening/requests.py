"""Fuzzed requests generated from the OpenAPI document: `python -m tests.hardening.requests --count N --seed S`.

Against a real server process over a fake device: no status of 500 or above but 503, 504 and 507, no restart, and
descriptors, memory and the time of health stay flat.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.app.test_server import Process, started

PROVOKED = frozenset({503, 504, 507})
ODD_TEXTS = (
    "", "a", "\0", "\u202e", "é", "家" * 300, "x" * 5000, "../..", "%2e%2e", "' OR 1=1 --", "\ud800", "{}", "[", "NaN",
    "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><path d='M0 0L9 9'/></svg>", "data:image/png;base64,",
)  # fmt: skip
ODD_NUMBERS = (0, -1, 1, 2**31, 2**53, 2**64, 10**300, -0.0, 1e308, 5e-324, 0.1, True)
ODD_VALUES: tuple[Any, ...] = (None, [], {}, [[]], {"a": {"b": [None]}}, *ODD_TEXTS, *ODD_NUMBERS)
KINDS = (
    "application/json",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=y",
    "",
    "a/b;c",
)
SMALL_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63600000000200010000e5"
    "27d4a20000000049454e44ae426082"
)
NAMES = ("default", "g", "a", "x" * 65, "ep_" + "0" * 24, "s_" + "0" * 16, "job_" + "0" * 24, "%00", "é", "invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run saw."""

    statuses: Counter[int]
    failures: Sequence[str]
    descriptors: tuple[int, int]
    rss_mib: tuple[int, int]
    health_ms: tuple[float, float]  # median and the 99th percentile


class Generator:
    """Requests of an OpenAPI document: mostly valid, often at a bound, sometimes of a wrong type."""

    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self._document = document
        self._random = random.Random(seed)
        self._operations = [
            (method.upper(), path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if method in ("get", "put", "post", "patch", "delete")
        ]

    def request(self) -> dict[str, Any]:
        """The arguments of `httpx.Client.request` for one request."""
        choose = self._random
        method, path, operation = choose.choice(self._operations)
        headers: dict[str, str] = {}
        params: list[tuple[str, str]] = []
        for parameter in operation.get("parameters", []):
            if "$ref" in parameter:
                continue  # a header: they follow
            value = str(choose.choice(NAMES) if parameter["in"] == "path" else self.value(parameter["schema"]))
            if parameter["in"] == "path":
                path = path.replace("{" + parameter["name"] + "}", value)
            elif choose.random() < 0.3:
                params.append((parameter["name"], value.encode("utf-8", "replace").decode()))
        if choose.random() < 0.05:
            params.append(("unknown", "1"))
        for name, values in (
            ("If-Match", ('"1"', "*", "nonsense", 'W/"2"')),
            ("X-Request-Timeout-Ms", ("2000", "0", "-1", "x")),
            ("Idempotency-Key", ("k1", "k2", "x" * 300)),
            ("X-Min-Seq", ("0", "1", "-1", "x")),
            ("Accept", ("image/png", "text/html", "*/*")),
        ):
            if choose.random() < 0.08:
                headers[name] = choose.choice(values)
        found: dict[str, Any] = {"method": method, "url": path, "params": params, "headers": headers}
        content = operation.get("requestBody", {}).get("content")
        if content is not None:
            found |= self._body(content, headers)
        return found

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """A value of a JSON schema, or in one of twelve cases another one."""
        choose = self._random
        if choose.random() < 0.08 or depth > 8:
            return choose.choice(ODD_VALUES)
        if "$ref" in schema:
            schema = self._document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return self.value(choose.choice(schema[union]), depth + 1)
        if "examples" in schema and choose.random() < 0.4:
            return choose.choice(schema["examples"])
        if "enum" in schema or "const" in schema:
            return choose.choice(schema.get("enum") or [schema["const"]])
        makers: dict[str, Callable[[dict[str, Any], int], Any]] = {
            "object": self._object, "array": self._array, "string": self._text, "integer": self._integer,
            "number": self._number, "boolean": lambda _s, _d: choose.random() < 0.5, "null": lambda _s, _d: None,
        }  # fmt: skip
        maker = makers.get(schema.get("type", ""))
        return choose.choice(ODD_VALUES) if maker is None else maker(schema, depth)

    def _object(self, schema: dict[str, Any], depth: int) -> Any:
        needed = schema.get("required", [])
        found = {
            name: self.value(inner, depth + 1)
            for name, inner in schema.get("properties", {}).items()
            if self._random.random() < (0.97 if name in needed else 0.4)
        }
        if self._random.random() < 0.05:
            found[self._random.choice(ODD_TEXTS)] = 1
        return found

    def _array(self, schema: dict[str, Any], depth: int) -> Any:
        most, least = schema.get("maxItems", 5), schema.get("minItems", 0)
        is_leaf = schema.get("items", {}).get("type") in ("number", "integer")
        counts = [least, least + 1, 3] + ([most, most + 1] if most < 1100 and (is_leaf or depth < 2) else [])
        weights = [4, 4, 4] + [1] * (len(counts) - 3)
        (count,) = self._random.choices(counts, weights)
        entry = self.value(schema.get("items", {}), depth + 1)
        return [entry if count > 10 else self.value(schema.get("items", {}), depth + 1) for _ in range(count)]

    def _text(self, schema: dict[str, Any], _depth: int) -> Any:
        if "pattern" in schema:
            return self._random.choice(NAMES)
        sizes = [schema.get("minLength", 0), schema.get("maxLength", 20), schema.get("maxLength", 20) + 1]
        return self._random.choice([*ODD_TEXTS, "house", "tree", "x" * min(5000, self._random.choice(sizes))])

    def _integer(self, schema: dict[str, Any], _depth: int) -> Any:
        low, high = int(schema.get("minimum", 0)), int(schema.get("maximum", 100))
        return self._random.choice([low, high, low - 1, high + 1, self._random.randint(low, high)])

    def _number(self, schema: dict[str, Any], _depth: int) -> Any:
        return self._random.choice([schema.get("minimum", 0), schema.get("maximum", 9), self._random.uniform(0, 256)])

    def _body(self, content: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        choose = self._random
        kind = choose.choice(list(content))
        if kind.startswith("multipart"):
            return self._form(content[kind]["schema"])
        body = json.dumps(self.value(content[kind]["schema"])).encode()
        headers["Content-Type"] = kind if choose.random() < 0.95 else choose.choice(KINDS)
        if choose.random() < 0.05:  # broken
            at = choose.randrange(len(body) + 1)
            body = body[:at] + choose.choice((b"", b"\xff", b"[" * 5000, b"\0")) + body[at + 1 :]
        return {"content": body}

    def _form(self, schema: dict[str, Any]) -> dict[str, Any]:
        choose, files, data = self._random, [], {}
        schema = self._document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
        for name, inner in schema.get("properties", {}).items():
            is_file = "binary" in json.dumps(inner)
            if is_file and choose.random() < 0.8:
                name = name.replace("<label>", choose.choice(("a", "b", "%ff", "é")))
                image = choose.choice((SMALL_PNG, SMALL_PNG, b"", b"GIF89a", SMALL_PNG[:-20]))
                files += [(name, (choose.choice(("a.png", "é.png")), image))] * choose.choice((1, 1, 2))
            elif not is_file and choose.random() < 0.5:
                value = self.value(inner)
                text = value if isinstance(value, str) else json.dumps(value)
                data[name] = text.encode("utf-8", "replace").decode()
        if choose.random() < 0.03:
            files.append(("nonsense", ("x", b"x")))
        return {"files": files or [("x", ("x", b""))], "data": data}


def run(count: int, seed: int, data_dir: Path) -> Report:
    """Send so many requests to a server of its own, which must be the same process at the end."""
    with started("free", data_dir, limit_s=60 + count, MAX_IN_FLIGHT="64") as process, process.connect() as client:
        process.wait_for("ready")
        generator = Generator(client.get("/openapi.json").json(), seed)
        statuses: Counter[int] = Counter()
        failures: list[str] = []
        health_s: list[float] = []
        has_ended = threading.Event()
        watch = threading.Thread(target=_ask_health, args=(str(client.base_url), has_ended, health_s))
        watch.start()
        try:
            before = _usage(process)
            for number in range(count):
                if number == count // 5:  # caches are warm
                    before = _usage(process)
                _send(client, generator.request(), statuses, failures, f"seed {seed}, request {number}")
            after = _usage(process)
        finally:
            has_ended.set()
            watch.join()
        if client.get("/livez").status_code != 200:
            failures.append("the server is not alive")
    slow = sorted(health_s)
    return Report(
        statuses=statuses,
        failures=failures,
        descriptors=(before[0], after[0]),
        rss_mib=(before[1], after[1]),
        health_ms=(slow[len(slow) // 2] * 1000, slow[int(len(slow) * 0.99)] * 1000),
    )


def _send(
    client: httpx.Client, request: dict[str, Any], statuses: Counter[int], failures: list[str], name: str
) -> None:
    try:
        answer = client.request(**request)
    except (httpx.InvalidURL, UnicodeEncodeError, ValueError):
        return  # no client can send it
    except httpx.TransportError as err:
        failures.append(f"{name}: {request['method']} {request['url']}: {err!r}")
        return
    statuses[answer.status_code] += 1
    if answer.status_code >= 500 and answer.status_code not in PROVOKED:
        shown = {part: repr(value)[:1500] for part, value in request.items()}
        failures.append(f"{name}: {answer.status_code} {answer.text[:300]} for {shown}")
    if answer.status_code >= 400 and answer.headers["content-type"] != "application/problem+json":
        failures.append(f"{name}: {answer.status_code} of {answer.headers['content-type']}")


def _ask_health(base: str, has_ended: threading.Event, times_s: list[float]) -> None:
    with httpx.Client(base_url=base, timeout=60) as client:
        while not has_ended.wait(0.02):
            started_s = time.perf_counter()
            client.get("/livez")
            times_s.append(time.perf_counter() - started_s)


def _usage(process: Process) -> tuple[int, int]:
    """Open descriptors, and resident memory in MiB."""
    folder = Path(f"/proc/{process.pid}")
    line = next(line for line in (folder / "status").read_text(encoding="ascii").splitlines() if "VmRSS" in line)
    return len(list((folder / "fd").iterdir())), int(line.split()[1]) >> 10


def main() -> int:
    """Run, print the figures, and return 1 where there was a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=19)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(chosen.count, chosen.seed, Path(folder))
    statuses = ", ".join(f"{status} x {number}" for status, number in sorted(report.statuses.items()))
    lines = [
        f"requests {sum(report.statuses.values())}: {statuses}",
        f"descriptors {report.descriptors}, RSS MiB {report.rss_mib}, health p50, p99 ms {report.health_ms}",
        f"failures {len(report.failures)}",
        *report.failures[:20],
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
