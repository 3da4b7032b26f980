#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""FP8 codes and scales of torch, compressed-tensors and llm-compressor, for tests/fp8.cpp.

    python3 make.py torch               torch.json: the values of all codes; the codes of all bfloat16 numbers, clamped first
    python3 make.py compressed_tensors  compressed_tensors.json: scales, codes and weights read back of ../fit/weights.json

Codes of bfloat16 numbers rise with the number: "runs" has the first bits of each code from +0 and from -0 to infinity, and
"nan" the codes that the NaNs get. Values are float32 bits; codes and values read back are hexadecimal.
"""
import json
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).parent


def bits_of(x):
    return struct.unpack("I", struct.pack("f", x))[0]


def hexadecimal(tensor, digits):
    return "".join(f"{x & (1 << 4 * digits) - 1:0{digits}x}" for x in tensor.flatten().tolist())


def make_torch():
    import torch

    made = {"versions": {"torch": torch.__version__}}
    for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        codes = torch.arange(256, dtype=torch.uint8)
        values = codes.view(dtype).float()
        numbers = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
        most = torch.finfo(dtype).max
        encoded = numbers.clamp(-most, most).to(dtype).view(torch.uint8).tolist()
        runs = [
            [bits, encoded[bits]]
            for start in (0, 0x8000)
            for bits in range(start, start + 0x7F81)
            if bits == start or encoded[bits] != encoded[bits - 1]
        ]
        nans = sorted({encoded[start + i] for start in (0, 0x8000) for i in range(0x7F81, 0x8000)})
        made[name] = {"values": hexadecimal(values.view(torch.int32), 8), "runs": runs, "nan": nans}
    return made


def make_compressed_tensors():
    import compressed_tensors
    import llmcompressor
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from llmcompressor.observers import Observer

    weights = json.loads((HERE.parent / "fit" / "weights.json").read_text())["weights"]
    strategies = {
        "tensor": ({}, [-1, -1]),
        "channel": ({}, [1, -1]),
        "group": ({"group_size": 16}, [1, 16]),
        "block": ({"block_structure": [3, 24]}, [3, 24]),
    }
    cases = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        w = torch.tensor(weights, dtype=torch.float32).to(dtype)
        for strategy, (options, shape) in strategies.items():
            args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=strategy, **options)
            found = Observer.load_from_registry("memoryless_minmax", base_name="weight", args=args)(w).get_qparams()
            scale = found["scale"]
            codes = quantize(w, scale, None, args, dtype=torch.float8_e4m3fn)
            back = dequantize(codes, scale, None, args)
            assert back.dtype == scale.dtype == dtype
            cases.append(
                {
                    "strategy": strategy,
                    "group": shape,
                    "dtype": {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype],
                    "scales": [bits_of(x) for x in scale.float().flatten().tolist()],
                    "codes": hexadecimal(codes.view(torch.uint8), 2),
                }
            )
            if strategy == "block":
                cases[-1]["back"] = hexadecimal(back.float().view(torch.int32), 8)
    return {
        "versions": {"compressed-tensors": compressed_tensors.__version__, "llmcompressor": llmcompressor.__version__},
        "cases": cases,
    }


if __name__ == "__main__":
    name = sys.argv[1]
    made = {"torch": make_torch, "compressed_tensors": make_compressed_tensors}[name]()
    text = json.dumps(made, separators=(",", ":")).replace('{"strategy', '\n{"strategy').replace(',"e', ',\n"e')
    (HERE / f"{name}.json").write_text(text + "\n")
