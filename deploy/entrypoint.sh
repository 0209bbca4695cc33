#!/usr/bin/env bash
# How the container starts: engines for IMPASTO_SIZES are compiled, or found in the cache, then the command runs.
#
#   IMPASTO_SIZES          widths and heights, such as "512x512 1024x768"; empty: build nothing
#   IMPASTO_BACKEND        what they are built for
#   IMPASTO_BUILD_OPTIONS  more options of `impasto engines build`, such as "--preset johnson"
set -euo pipefail

if [[ ! -O $IMPASTO_CACHE || ! -w $IMPASTO_CACHE ]]; then
    # Engines would be built anew at every start.
    echo "cache $IMPASTO_CACHE does not belong to user $(id -u): use a named volume, or chown the folder mounted there" >&2
    exit 2
fi
read -ra sizes <<<"${IMPASTO_SIZES:-}"
read -ra options <<<"${IMPASTO_BUILD_OPTIONS:-}"
if ((${#sizes[@]})); then
    # What the command prints shall be all that the container prints on standard output.
    impasto engines build --backend "$IMPASTO_BACKEND" "${sizes[@]/#/--size=}" "${options[@]}" >&2
fi
exec "$@"
