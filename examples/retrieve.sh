#!/bin/sh
# Search a gallery by a drawing, by words and by an image file.
set -eu
url=${VERMOUTH_URL:-http://127.0.0.1:8000}
curl --fail-with-body -s "$url/retrieve" -H 'Content-Type: application/json' \
  -d '{"sketch": {"strokes": [[[40,40,210,210,40],[120,230,230,120,120]]], "width": 256, "height": 256}, "k": 5}'
curl --fail-with-body -s "$url/retrieve" -F text='a fish' -F k=5
curl --fail-with-body -s "$url/retrieve" -F sketch=@docs/pictures/sketch.png -F k=5
