"""Compare the vector index with plain FAISS HNSW, usearch and Qdrant Edge: `python -m benchmarks.index`.

Every size's parts are written to `docs/results/index.json` as soon as they are measured, and are not measured again:
a run that was stopped continues.
"""

import json
import sys
import time
from typing import Any

import faiss

from benchmarks.index import report, sample
from benchmarks.index.contenders import PARTS
from benchmarks.report import arguments, header

SIZES = (10_000, 100_000, 1_000_000)


def main() -> None:
    """Measure the parts that are missing, and write the report."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="measure everything again")
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    path = options.out / "index.json"
    results: dict[str, Any] = {"dimension": sample.DIMENSION, "parts": []}
    if path.exists() and not options.again:  # of a run that was stopped, or of other sizes
        results = json.loads(path.read_text(encoding="utf-8"))
    for size in options.sizes:
        measured = {each["part"] for each in results["parts"] if each["size"] == size}
        missing = [part for part in options.parts if part not in measured]
        if not missing:
            continue
        drawn = sample.draw(size)
        for part in missing:
            started_s = time.perf_counter()
            rows = PARTS[part](drawn)
            took_s = time.perf_counter() - started_s
            about = {"size": size, "part": part, "header": header("make bench-index"), "took_s": took_s}
            results["parts"].append({**about, "rows": rows})
            report.write(options.out, results)
            sys.stderr.write(f"{size} {part}: {took_s:.0f} s\n")
    if results["parts"]:
        report.write(options.out, results)


if __name__ == "__main__":
    main()
