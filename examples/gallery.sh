#!/bin/sh
# Fill a gallery of your own, search it, and delete it.
set -eu
url=${VERMOUTH_URL:-http://127.0.0.1:8000}
curl --fail-with-body -s -X PUT "$url/galleries/example-two-images" -H 'Content-Type: application/json' -d '{"description": "two images"}'
curl --fail-with-body -s "$url/galleries/example-two-images/items" -F image=@docs/pictures/scene.png -F image=@docs/pictures/sketch.png \
  -F 'items=[{"id": "scene", "metadata": {"drawn": false}}, {"id": "sketch", "metadata": {"drawn": true}}]'
curl --fail-with-body -s "$url/retrieve" -F gallery=example-two-images -F text='a drawing' -F 'filter={"drawn": true}'
curl --fail-with-body -s -X DELETE "$url/galleries/example-two-images?confirm=example-two-images"
