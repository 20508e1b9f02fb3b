#!/usr/bin/env bash
# The parsers as pure functions under libFuzzer, guided by coverage; stable Rust and a C++ compiler are enough.
# usage: parsers.sh SECONDS FOLDER        FOLDER keeps the corpus and what is found; give it again to go on from there
set -euo pipefail
seconds=$1 folder=$2 here=$(dirname "$0")
host=$(rustc -vV | sed -n 's/^host: //p')
build=${CARGO_TARGET_DIR:-$here/../../target}/fuzz
coverage='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares'
RUSTFLAGS=$(echo $coverage) timeout -k 10 900 cargo build --quiet --locked --release --target "$host" \
    --manifest-path "$here/parsers/Cargo.toml" --target-dir "$build"
mkdir -p "$folder/corpus"
# To begin with: a whole request, which chance finds late; the first byte chooses the parser.
printf '\1POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n{}' >"$folder/corpus/request"
timeout -k 10 $((seconds + 120)) "$build/$host/release/fuzz-parsers" -max_total_time="$seconds" -timeout=10 -max_len=2000 \
    -artifact_prefix="$folder/" "$folder/corpus" >"$folder/log" 2>&1 || { tail -c 8000 "$folder/log"; exit 1; }
runs=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$folder/log")
[ "$runs" -gt 10000 ] || { tail -c 8000 "$folder/log"; exit 1; }
echo "  ok: $runs inputs in $seconds s, $(find "$folder/corpus" -type f | wc -l) that reach something new"
echo "1 libFuzzer checks passed"
