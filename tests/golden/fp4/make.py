#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Block scales and packed codes of mxfp4 and nvfp4 by compressed-tensors and llm-compressor, for tests/fp4.cpp.

    python3 make.py  compressed_tensors.json, of ../fit/weights.json and of rows of its own

"weights" and "global" are float32 bits; "scales" and "packed" the stored bytes, hexadecimal; "back" the bits of the bfloat16
numbers that compressed-tensors reads back. A case is of "rows" alone, rounded to "dtype". None is -0, which compressed-tensors
stores as +0.
"""
import json
import pathlib
import struct

import compressed_tensors
import llmcompressor
import torch
from compressed_tensors.compressors import MXFP4PackedCompressor, NVFP4PackedCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from llmcompressor.observers import Observer

HERE = pathlib.Path(__file__).parent


def bits_of(x):
    return struct.unpack("I", struct.pack("f", x))[0]


def hexadecimal(tensor, digits):
    return "".join(f"{x & (1 << 4 * digits) - 1:0{digits}x}" for x in tensor.flatten().tolist())


def weights():
    rows = json.loads((HERE.parent / "fit" / "weights.json").read_text())["weights"]
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0, -6.0]
    rows.append(ties * 4)
    # Greatest numbers of blocks on both sides of what the next power of two takes.
    for top in (1.0, 1.4921875, 1.5, 1.7421875, 1.75, 1.9921875, 2.0, 0.8125):
        rows.append([top * (i % 16 + 1) / 16 * (-1) ** i for i in range(64)])
    rows.append([1e-30 * (i + 1) for i in range(64)])
    rows.append([(i - 31.5) * 2.0 ** (i // 16 * 3) for i in range(64)])
    return rows


def main():
    cases = []
    for preset, compressor in (("MXFP4A16", MXFP4PackedCompressor), ("NVFP4A16", NVFP4PackedCompressor)):
        for dtype in (torch.float32, torch.bfloat16):
            for lowest in (False, True):  # all rows, or the small ones alone, whose global scale is another
                rows = weights()[:1] + weights()[6:7] if lowest else weights()
                w = torch.tensor(rows, dtype=torch.float32).to(dtype)
                scheme = preset_name_to_scheme(preset, ["Linear"])
                found = Observer.load_from_registry("memoryless_minmax", base_name="weight", args=scheme.weights)(w).get_qparams()
                state = {"weight": w, "weight_scale": found["scale"]}
                if found["global_scale"] is not None:
                    state["weight_global_scale"] = found["global_scale"]
                packed = compressor.compress(dict(state), scheme)
                back = compressor.decompress(dict(packed), scheme)["weight"]
                assert back.dtype == torch.bfloat16
                cases.append(
                    {
                        "format": preset[:5].lower(),
                        "dtype": {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype],
                        "rows": [0, 6] if lowest else list(range(len(rows))),
                        "global": bits_of(found["global_scale"].item()) if found["global_scale"] is not None else None,
                        "scales": hexadecimal(packed["weight_scale"].view(torch.uint8), 2),
                        "packed": hexadecimal(packed["weight_packed"], 2),
                        "back": hexadecimal(back.view(torch.int16), 4),
                    }
                )
    made = {
        "versions": {"compressed-tensors": compressed_tensors.__version__, "llmcompressor": llmcompressor.__version__},
        "weights": [[bits_of(x) for x in row] for row in weights()],
        "cases": cases,
    }
    text = json.dumps(made, separators=(",", ":")).replace('{"format', '\n{"format')
    (HERE / "compressed_tensors.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
