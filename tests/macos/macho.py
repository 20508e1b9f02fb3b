#!/usr/bin/env python3
"""Checks a program that was linked for macOS: its signature, the oldest system that it names, and what it imports.

Usage: macho.py PROGRAM... The symbols that may be imported stand in the file `imports`: each has been in libSystem
since the oldest macOS that is named here. Formats: <mach-o/loader.h>, <mach-o/nlist.h> of XNU.
"""
import os
import struct
import sys

OLDEST = {0x01000007: (10, 12), 0x0100000C: (11, 0)}  # x86_64, arm64: those of Rust's standard library
LC_SYMTAB, LC_CODE_SIGNATURE, LC_VERSION_MIN_MACOSX, LC_BUILD_VERSION = 0x2, 0x1D, 0x24, 0x32
N_STAB, N_TYPE, N_EXT, N_UNDF = 0xE0, 0x0E, 0x01, 0x0

with open(os.path.join(os.path.dirname(__file__), "imports")) as file:
    allowed = {line.strip() for line in file if not line.startswith("#")}


def check(path):
    with open(path, "rb") as file:
        data = file.read()
    magic, cpu, _, kind, count, _, _, _ = struct.unpack_from("<8I", data)
    assert magic == 0xFEEDFACF and kind == 2, "%s is no 64-bit program for macOS" % path
    at, is_signed, oldest, imported = 32, False, None, set()
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, at)
        if command == LC_CODE_SIGNATURE:
            is_signed = True
        elif command == LC_BUILD_VERSION:
            oldest = struct.unpack_from("<I", data, at + 12)[0]
        elif command == LC_VERSION_MIN_MACOSX:
            oldest = struct.unpack_from("<I", data, at + 8)[0]
        elif command == LC_SYMTAB:
            symbols, number, strings, _ = struct.unpack_from("<4I", data, at + 8)
            for index in range(number):
                name, flags, _, _, _ = struct.unpack_from("<IBBHQ", data, symbols + 16 * index)
                if not flags & N_STAB and flags & N_EXT and flags & N_TYPE == N_UNDF:
                    end = data.index(b"\0", strings + name)
                    imported.add(data[strings + name : end].decode())
        at += size
    version = (oldest >> 16, oldest >> 8 & 0xFF)
    assert is_signed or cpu != 0x0100000C, "%s has no signature, without which arm64 starts nothing" % path
    assert version <= OLDEST[cpu], "%s wants macOS %d.%d" % ((path,) + version)
    assert imported - allowed == set(), "%s imports %s: are they in %s?" % (path, sorted(imported - allowed), OLDEST[cpu])
    print("%s: macOS %d.%d, %d imports, %s" % ((path,) + version + (len(imported), "signed" if is_signed else "not signed")))


for path in sys.argv[1:]:
    check(path)
