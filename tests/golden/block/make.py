#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Blocks that ggml's encoders make and numbers that its decoders read, for tests/block.cpp.

    python3 make.py  ggml.json, by the library in the package ggml-python

Weights, importance and blocks come from integer hashes, by formulas that the test repeats, and are exact in float32. The file holds FNV-1a
hashes of what ggml makes of many rows, and for one short row a kind the bytes themselves.
"""
import ctypes
import importlib.metadata
import json
import pathlib

import ggml
import numpy as np

HERE = pathlib.Path(__file__).parent
TYPES = [2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23]
KINDS = ["normal", "heavy", "constant", "zero", "denormal", "tiny", "positive", "negative", "spike", "tie", "range", "sweeps"]
COLUMNS = [256, 768, 1536]
ROWS = 4
BLOCKS = 512


def mixed(x):
    """A hash of 32 bits, elementwise."""
    x = np.asarray(x, dtype=np.uint64)
    for shift, factor in ((16, 2654435761), (15, 2246822519), (13, 3266489917)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor) % np.uint64(2**32)
    return x ^ (x >> np.uint64(16))


def bits16(seed, t):
    return (mixed(np.uint64(seed * 40503) + t) >> np.uint64(16)).astype(np.int64)


def normal(seed, count):
    """Integers in [-262140, 262140], nearly normal: the sum of 8 uniform ones."""
    return bits16(seed, np.arange(8 * count, dtype=np.uint64)).reshape(count, 8).sum(1) - 262140


def weights(kind, row, k):
    if KINDS[kind] == "sweeps":  # rows with a group of Q3_K whose codes still move in the fifth sweep
        return weights(KINDS.index("range"), row + 20, k)
    seed = 1000 * kind + row + 1
    n, u = normal(seed, k), bits16(seed + 500, np.arange(k, dtype=np.uint64))
    name = KINDS[kind]
    scaled = lambda integers, exponent: np.ldexp(integers.astype(np.float32), exponent)
    if name == "normal":
        return scaled(n, -21)
    if name == "heavy":
        return scaled(n, -15) / (1 + u % 256).astype(np.float32)
    if name == "constant":
        return scaled(np.full(k, u[0] - 32768), -20)
    if name == "zero":
        return np.where(u % 2 == 1, np.float32(-0.0), np.float32(0.0))
    if name == "denormal":
        return scaled(n, -149)
    if name == "tiny":
        return scaled(n, -67)
    if name == "positive":
        return scaled(np.abs(n) + row % 2 * 65536, -21)
    if name == "negative":
        return scaled(-np.abs(n) - row % 2 * 65536, -21)
    if name == "spike":
        return scaled(n, -21) * np.where(u % 32 == 0, np.float32(16), np.float32(2.0**-12))
    if name == "tie":
        halves = np.where(np.arange(k) % 32 == 0, 254, u % 509 - 254)  # of the step that a largest weight of 127 steps makes
        return scaled(halves, -9) if row % 2 == 1 else scaled(u % 33 - 16, -6)
    assert name == "range"
    return np.ldexp(n.astype(np.float32), -16 - (bits16(seed + 700, np.arange(k, dtype=np.uint64) // np.uint64(16)) % 24))


def importance(k):
    u = bits16(77, np.arange(k, dtype=np.uint64))
    return np.where(u % 8 == 0, np.float32(0), np.ldexp(u.astype(np.float32), -12))


def fnv(data):
    state = 0xCBF29CE484222325
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return f"{state:016x}"


def main():
    library = ctypes.CDLL(str(next((pathlib.Path(ggml.__file__).parent / "lib").glob("libggml-base*"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_name.restype = library.ggml_version.restype = ctypes.c_char_p

    def encoded(type_, w, columns):
        rows, k = w.shape
        size = rows * k // library.ggml_blck_size(type_) * library.ggml_type_size(type_)
        out = np.empty(size, dtype=np.uint8)
        made = library.ggml_quantize_chunk(
            type_, w.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0), ctypes.c_int64(rows),
            ctypes.c_int64(k), columns.ctypes.data_as(ctypes.c_void_p) if columns is not None else None)
        assert made == size
        return out.tobytes()

    types, cases = [], []
    for type_ in TYPES:
        library.ggml_quantize_init(type_)
        name, size = library.ggml_type_name(type_).decode(), library.ggml_type_size(type_)
        weights_of_block = library.ggml_blck_size(type_)
        blocks = bits16(type_, np.arange(BLOCKS * size, dtype=np.uint64)) >> 8
        blocks = np.ascontiguousarray(blocks.astype(np.uint8))
        read = np.empty(BLOCKS * weights_of_block, dtype=np.float32)
        getattr(library, "dequantize_row_" + name)(
            blocks.ctypes.data_as(ctypes.c_void_p), read.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(read.size))
        read = np.where(np.isnan(read), np.float32(np.nan), read).view(np.uint32)
        read = np.where(read & 0x7FFFFFFF > 0x7F800000, np.uint32(0x7FC00000), read)
        types.append({"type": type_, "name": name, "weights": weights_of_block, "bytes": size, "decoded": fnv(read.tobytes())})
        for with_importance in (False, True):
            for kind, kind_name in enumerate(KINDS):
                made = []
                for k in COLUMNS:
                    w = np.ascontiguousarray(np.stack([weights(kind, row, k) for row in range(ROWS)]).astype(np.float32))
                    made.append(encoded(type_, w, importance(k) if with_importance else None))
                case = {"type": type_, "importance": with_importance, "kind": kind_name, "hashes": [fnv(m) for m in made]}
                if kind_name in ("normal", "heavy"):
                    case["bytes"] = made[0][: len(made[0]) // ROWS].hex()
                cases.append(case)
    made = {
        "versions": {"ggml": library.ggml_version().decode(), "ggml-python": importlib.metadata.version("ggml-python")},
        "types": types,
        "cases": cases,
    }
    text = json.dumps(made, separators=(",", ":")).replace('{"type', '\n{"type')
    (HERE / "ggml.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
