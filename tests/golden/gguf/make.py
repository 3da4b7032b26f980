# SPDX-License-Identifier: Apache-2.0
"""Writes small.gguf with the Python package gguf: a key of each type, arrays, and four tensors. tests/mistral/gguf.cpp makes the
same file by our writer. From the repository's root: python3 tests/golden/gguf/make.py"""
from importlib.metadata import version

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

w = GGUFWriter("tests/golden/gguf/small.gguf", "llama")
w.add_string("made_by", f"gguf {version('gguf')}")
w.add_uint8("u8", 200)
w.add_int8("i8", -100)
w.add_uint16("u16", 60000)
w.add_int16("i16", -30000)
w.add_uint32("u32", 4000000000)
w.add_int32("i32", -2000000000)
w.add_float32("f32", 1.5)
w.add_uint64("u64", 1 << 63)
w.add_int64("i64", -(1 << 62))
w.add_float64("f64", 0.1)
w.add_bool("bool", True)
w.add_array("strings", ["", "▁the", "<0x0A>"])
w.add_array("numbers", [1, -2, 3])
w.add_array("floats", [0.5, -1.25])
w.add_array("flags", [True, False])
w.add_tensor("token_embd.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
w.add_tensor("half", np.array([1.0, -2.0, 0.5], dtype=np.float16))
blocks = np.arange(2 * 2 * 34, dtype=np.uint8).reshape(2, 68)  # two rows of two blocks
w.add_tensor("blocks", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
w.add_tensor("cube", np.arange(8, dtype=np.float32).reshape(2, 2, 2))
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
