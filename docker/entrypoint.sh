#!/bin/sh
# Preloads jemalloc where the image has it, then becomes `vermouth`, so that signals reach the server itself.
set -eu
for library in /usr/lib/*/libjemalloc.so.2; do
    [ -e "$library" ] && export LD_PRELOAD="$library"
done
exec vermouth "$@"
