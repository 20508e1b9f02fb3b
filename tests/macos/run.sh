#!/usr/bin/env bash
# The integration suite where Linux behaves towards the program as macOS does (model.c says in what). The program is
# built with its macOS side turned on. Usage: tests/macos/run.sh [arguments of cargo test --test it --]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${CARGO_TARGET_DIR:-$PWD/target}/macos-model
mkdir -p "$build"
# An own target folder, for the flag would have the other build made anew. Debug assertions are off as in a release.
RUSTFLAGS="--cfg model_of_macos" CARGO_TARGET_DIR="$build" cargo build --quiet --locked --release
cc -O1 -Wall -Wextra -Werror -shared -fPIC -o "$build/model.so" tests/macos/model.c -ldl
cc -O1 -Wall -Wextra -Werror -DLIBRARY="\"$build/model.so\"" -DFOLDER="\"$build\"" -DPROGRAM="\"$build/release/mcp-py\"" \
    -o "$build/mcp-py" tests/macos/launch.c
python=$(python3 -c 'import sys; print(sys.executable)') # the executable behind a shim
{ printf '#!%s -IS\n' "$python"; sed 1d tests/macos/ps; } >"$build/ps"
chmod +x "$build/ps"
skip=()
while read -r name _; do skip+=(--skip "$name"); done < <(sed '/^#/d; /^$/d' tests/macos/linux-alone)
MCP_PY_TEST_BINARY="$build/mcp-py" cargo test --release --locked --test it -- "${skip[@]}" "$@"
[ "$#" = 0 ] || exit 0
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"$python" tests/macos/starts.py "$build/mcp-py" "$tmp/starts"
