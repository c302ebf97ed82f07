#!/bin/sh
# Cut named things out of an image: areas with masks, then one PNG whose palette indexes are the classes.
set -eu
url=${VERMOUTH_URL:-http://127.0.0.1:8000}
curl --fail-with-body -s "$url/segment" -F image=@docs/pictures/scene.png -F classes=mailbox -F classes=notebook
curl --fail-with-body -s "$url/segment" -H 'Accept: image/png' -o "${TMPDIR:-/tmp}/masks.png" \
  -F image=@docs/pictures/scene.png -F classes=mailbox -F classes=notebook
