#!/bin/sh
# Register two classes by two examples each, and classify an image in the same call.
set -eu
url=${VERMOUTH_URL:-http://127.0.0.1:8000}
curl --fail-with-body -s "$url/fewshot/episodes" -H 'Content-Type: application/json' -d '{"ttl_seconds": 3600, "ways": [
  {"label": "cat",  "support": [{"item": {"gallery": "default", "id": "1f431"}}, {"item": {"gallery": "default", "id": "1f408"}}]},
  {"label": "fish", "support": [{"item": {"gallery": "default", "id": "1f41f"}}, {"item": {"gallery": "default", "id": "1f420"}}]}],
  "queries": [{"item": {"gallery": "default", "id": "1f638"}}]}'
