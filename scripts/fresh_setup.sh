#!/usr/bin/env bash
# Proves the README's promise: a copy of the tracked files in a temporary folder is set up by `make serve`'s own steps
# in a new virtual environment, the service starts, and one curl brings back a picture.
set -euo pipefail

root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
work=$(mktemp -d)
port=${PORT:-8931}
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

git -C "$root" archive HEAD | tar -x -C "$work"
cd "$work"
make setup
make serve PORT="$port" >"$work/serve.log" 2>&1 &
server=$!

for _ in $(seq 120); do
    curl --silent --fail "http://127.0.0.1:$port/readyz" >/dev/null && break
    kill -0 "$server" || { cat "$work/serve.log"; exit 1; }
    sleep 0.5
done
curl --silent --show-error --fail "http://127.0.0.1:$port/v1/superpose/and" \
    --header 'Content-Type: application/json' --header 'Accept: image/png' \
    --data '{"components": ["a red circle", "a blue star"], "seed": 7}' --output "$work/picture.png"
.venv/bin/python -c 'import sys; from PIL import Image; image = Image.open(sys.argv[1]); image.load()
print(f"fresh set-up composed a {image.width}×{image.height} {image.format}")' "$work/picture.png"
