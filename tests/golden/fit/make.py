#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scales, zero points and codes of the packages that define the conventions, for tests/fit.cpp and tests/quantize.cpp.

    python3 make.py weights             weights.json: 8 x 64 numbers with every kind of row
    python3 make.py compressed_tensors  needs compressed-tensors and llmcompressor
    python3 make.py autoawq             needs autoawq
    python3 make.py gptqmodel           needs gptqmodel
    python3 make.py torchao             needs torchao

Codes (hexadecimal, two digits from 8 bits on) and zero points are written unsigned: 2^(bits-1) is added to signed ones.
A group of 0 stands for one per row.
"""
import itertools
import json
import pathlib
import random
import struct
import sys
import types

HERE = pathlib.Path(__file__).parent


def shortest(x):
    """The number with the fewest digits that is x in float32."""
    x = struct.unpack("f", struct.pack("f", x))[0]
    texts = (float(f"{x:.{digits}g}") for digits in range(1, 10))
    return next(text for text in texts if struct.pack("f", text) == struct.pack("f", x))


def weights():
    draw = random.Random(7)
    row = lambda f: [f(i) for i in range(64)]
    rows = [
        row(lambda i: draw.gauss(0, 0.02)),
        row(lambda i: abs(draw.gauss(0.3, 0.2)) + 1e-3),  # no negatives
        row(lambda i: -abs(draw.gauss(0.3, 0.2)) - 1e-3),  # no positives
        row(lambda i: 0.0 if i < 48 else draw.gauss(0, 1)),  # whole groups of zeros
        row(lambda i: (i % 16 - 8) / 2 + 0.25),  # ties and values on the grid
        row(lambda i: draw.gauss(0, 0.01) + (3.0 if i in (5, 40) else 0)),  # outliers
        row(lambda i: draw.gauss(0, 1e-4)),
        row(lambda i: draw.uniform(-100, 30) if i % 3 else 0.0),
    ]
    return {"weights": [[shortest(x) for x in r] for r in rows]}


def load(torch, dtype):
    return torch.tensor(json.loads((HERE / "weights.json").read_text())["weights"], dtype=torch.float32).to(dtype)


def case(torch, name, dtype, bits, symmetric, group, scales, zeros, codes=None):
    out = {
        "method": name,
        "dtype": {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype],
        "bits": bits,
        "symmetric": symmetric,
        "group": group,
        "scales": [shortest(x) for x in scales.float().flatten().tolist()],
        "zeros": [int(x) for x in zeros.flatten()],
    }
    if codes is not None:
        out["codes"] = "".join(f"{int(x):0{1 if bits <= 4 else 2}x}" for x in codes.flatten())
    return out


def compressed_tensors():
    import compressed_tensors
    import llmcompressor
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from llmcompressor.observers import Observer

    cases = []
    for dtype, bits, symmetric, group in itertools.product(
        (torch.float32, torch.bfloat16, torch.float16), (3, 4, 8), (True, False), (32, 0)
    ):
        w = load(torch, dtype)
        args = QuantizationArgs(
            num_bits=bits, symmetric=symmetric, strategy="group" if group else "channel", group_size=group or None
        )
        for name in ("memoryless_minmax", "memoryless_mse"):
            found = Observer.load_from_registry(name, base_name="weight", args=args)(w).get_qparams()
            scale, zero, codes = found["scale"], found["zero_point"], None
            half = 2 ** (bits - 1)
            if name == "memoryless_minmax":
                codes = quantize(w, scale, zero, args, dtype=torch.int8).int() + half
            cases.append(case(torch, name, dtype, bits, symmetric, group, scale, zero.int() + half, codes))
    return {
        "versions": {"compressed-tensors": compressed_tensors.__version__, "llmcompressor": llmcompressor.__version__},
        "cases": cases,
    }


def autoawq():
    import awq
    import torch
    from awq.quantize.quantizer import AwqQuantizer

    cases = []
    for dtype, bits, symmetric, group in itertools.product((torch.float32, torch.float16), (3, 4, 8), (True, False), (32, 0)):
        w = load(torch, dtype)
        quantizer = AwqQuantizer.__new__(AwqQuantizer)
        quantizer.group_size, quantizer.w_bit, quantizer.zero_point = group, bits, not symmetric
        read_back, scales, zeros = quantizer.pseudo_quantize_tensor(w)
        if zeros is None:
            zeros = torch.full_like(scales, 2 ** (bits - 1))
        wide = lambda t: t.double().repeat_interleave(64 // t.shape[1], 1)
        codes = torch.round(read_back.double() / wide(scales) + wide(zeros))
        assert torch.equal(((codes - wide(zeros)) * wide(scales)).to(dtype), read_back)
        cases.append(case(torch, "minmax", dtype, bits, symmetric, group, scales, zeros, codes))
    return {"versions": {"autoawq": awq.__version__}, "cases": cases}


def gptqmodel():
    import gptqmodel
    import torch
    from gptqmodel.quantization.quantizer import Quantizer

    cases = []
    # A last group of 16 after two of 24, as the solver meets it.
    for bits, symmetric, group, mse in itertools.product((3, 4, 8), (True, False), (24, 0), (0.0, 2.4)):
        w = load(torch, torch.float32)
        quantizer = Quantizer(types.SimpleNamespace(bits=bits, sym=symmetric, mse=mse, group_size=group or -1))
        quantizer.configure(perchannel=True)
        scales, zeros, codes = [], [], []
        for part in w.split(group or 64, dim=1):
            quantizer.find_params(part, weight=True)
            scale, zero = quantizer.scale.clone(), quantizer.zero.clone()
            codes.append(torch.round(quantizer.quantize(part).double() / scale.double() + zero.double()))
            scales.append(scale)
            zeros.append(zero)
        join = lambda parts: torch.cat(parts, dim=1)
        cases.append(
            case(torch, "mse" if mse else "minmax", torch.float32, bits, symmetric, group, join(scales), join(zeros),
                 None if mse else join(codes))
        )
    return {"versions": {"gptqmodel": gptqmodel.__version__}, "cases": cases}


def torchao():
    import torch
    import torchao
    from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine

    cases = []
    for dtype, bits, symmetric, group in itertools.product(
        (torch.float32, torch.bfloat16), (3, 4, 8), (True, False), (32, 0)
    ):
        half = 2 ** (bits - 1)
        scales, zeros = choose_qparams_affine(
            load(torch, dtype), MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC, (1, group or 64),
            torch.int8, -half, half - 1,
        )
        cases.append(case(torch, "minmax", dtype, bits, symmetric, group, scales, zeros.int() + half))
    return {"versions": {"torchao": torchao.__version__}, "cases": cases}


if __name__ == "__main__":
    name = sys.argv[1]
    made = globals()[name]()
    (HERE / f"{name}.json").write_text(json.dumps(made, separators=(",", ":")).replace('{"method', '\n{"method') + "\n")
