#!/usr/bin/env bash
# The README's recipes for a machine without a network, in a namespace that has none (as root); the sources are vendored
# before. And the statically linked program.
# usage: airgapped.sh PATH-TO-MCP-PY FOLDER
set -euo pipefail
binary=$(realpath "$1") folder=$2 top=$PWD
mkdir -p "$folder/home" "$folder/copied"
alone=()
if [ "$(id -u)" = 0 ]; then # where the sources that it was built from are not, either
    alone=(unshare --net --mount sh -c 'mount -t tmpfs none "$0/src" && exec "$@"' "$top")
else
    echo "not in a namespace of its own: needs root"
fi
passed=0
expect() { # a name, what is expected somewhere in what came, what came
    case $3 in *"$2"*) passed=$((passed + 1)) ;; *) printf '%s: expected %s, got:\n%s\n' "$1" "$2" "$3"; exit 1 ;; esac
}
tried='x = 1 + 1 by MCP, then x by the client: 2'
here=(env HOME="$folder/home" CARGO_HOME="$folder/cargo" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}")

echo "where there is a network: the sources and what they need, in one folder"
cp -r Cargo.toml Cargo.lock src tests README.md "$folder/copied"
cd "$folder/copied"
mkdir .cargo
cargo vendor --locked 2>"$folder/vendor.log" >.cargo/config.toml
echo "where there is none: from the sources"
expect 'from the sources' "$tried" "$("${here[@]}" CARGO_TARGET_DIR="$folder/target" "${alone[@]}" cargo run --quiet --release -- install)"

echo "from one copied file"
cp "$binary" "$folder/one-file"
expect 'from one file' "$tried" "$("${here[@]}" "${alone[@]}" "$folder/one-file" install --dir "$folder/bin")"
rm "$folder/one-file" # what is installed stands by itself
told=$("${here[@]}" "${alone[@]}" env PATH="$folder/bin:$PATH" "$folder/bin/mcp-py" doctor || true)
for fact in server client python environment; do expect "doctor: $fact" "ok   $fact " "$told"; done
case $told in *'will be made'*) printf 'no environment was made:\n%s\n' "$told"; exit 1 ;; *) passed=$((passed + 1)) ;; esac

echo "linked statically"
target=$(rustc -vV | sed -n 's/^host: //p')
"${here[@]}" CARGO_TARGET_DIR="$folder/static" RUSTFLAGS='-C target-feature=+crt-static' \
    "${alone[@]}" cargo build --quiet --release --target "$target"
static="$folder/static/$target/release/mcp-py"
expect 'no library is asked for' 'statically linked' "$(ldd "$static" 2>&1 || true)"
expect 'the static one' "$tried" "$("${here[@]}" "${alone[@]}" "$static" install --dir "$folder/static-bin")"
printf 'dynamic %s bytes, static %s bytes\n' "$(stat -c %s "$binary")" "$(stat -c %s "$static")"
cd "$top"
echo "$passed air-gapped checks passed"
