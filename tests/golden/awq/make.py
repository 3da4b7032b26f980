#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Candidate scales of the packages that search them, for tests/awq.cpp.

    python3 make.py inputs         inputs.json: activations (16, 64), two linears (6, 64) and (4, 64) that read them
    python3 make.py llmcompressor  needs llmcompressor
    python3 make.py autoawq        needs autoawq

The packages' own search runs once per candidate, with losses that make that candidate win; what it returns is the
candidate's scale. Groups of 32, all in float32.
"""
import importlib.metadata
import json
import pathlib
import random
import struct
import sys
import types

HERE = pathlib.Path(__file__).parent
GROUP = 32
EVERY = 3  # of the candidates whose scales are kept


def shortest(x):
    """The number with the fewest digits that is x in float32."""
    x = struct.unpack("f", struct.pack("f", x))[0]
    texts = (float(f"{x:.{digits}g}") for digits in range(1, 10))
    return next(text for text in texts if struct.pack("f", text) == struct.pack("f", x))


def inputs():
    draw = random.Random(11)
    loud = [draw.lognormvariate(0, 1.5) for _ in range(64)]
    loud[9] = 0.0  # a dead channel
    rows = lambda n, scale: [[round(draw.gauss(0, scale), 4) for _ in range(64)] for _ in range(n)]
    activations = [[round(draw.gauss(0, 1) * loud[j], 3) for j in range(64)] for _ in range(16)]
    linears = [rows(6, 0.02), rows(4, 0.3)]
    for linear in linears:
        for row in linear:
            row[40] = 0.0  # a channel no linear reads
    return {"activations": activations, "linears": linears}


def load(torch):
    data = json.loads((HERE / "inputs.json").read_text())
    linears = []
    for rows in data["linears"]:
        linear = torch.nn.Linear(64, len(rows), bias=False)
        linear.weight.data = torch.tensor(rows, dtype=torch.float32)
        linears.append(linear)
    return torch.tensor(data["activations"], dtype=torch.float32), linears


def block_of(torch, linears):
    """What the linears are part of: their outputs side by side."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linears = torch.nn.ModuleList(linears)

        def forward(self, x):
            return torch.cat([linear(x) for linear in self.linears], dim=-1)

    return Block()


def losses_for(winner):
    """A loss function whose call number `winner` is the least."""
    calls = iter(range(1000))
    return lambda *a, **k: 0.0 if next(calls) == winner else 1.0


def llmcompressor():
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, initialize_module_for_quantization
    from llmcompressor.modifiers.transform.awq import AWQModifier

    args = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=GROUP)
    grids = []
    for duo in (False, True, "both"):
        modifier = AWQModifier(duo_scaling=duo, n_grid=20)
        grid = modifier._get_grid_search_params()
        candidates = []
        for index, (ratio, with_weights) in enumerate(grid):
            if index % EVERY:
                continue
            x, linears = load(torch)
            for linear in linears:
                initialize_module_for_quantization(linear, QuantizationScheme(targets=["Linear"], weights=args))
            mapping = types.SimpleNamespace(
                parent=block_of(torch, linears), parent_name="block", smooth_name="norm", balance_layers=linears
            )
            modifier._smooth_activation_stats["norm"] = (x.abs().sum(0), torch.tensor(len(x)))
            object.__setattr__(modifier, "_run_samples", lambda module: [])
            object.__setattr__(modifier, "_compute_loss", losses_for(index))
            weights = {linear: linear.weight.data.clone() for linear in linears}
            means = modifier._compute_layer_means(linears)  # the search leaves other weights behind
            scale = modifier._compute_best_scale(mapping, [], weights)
            candidates.append(
                {"ratio": ratio, "duo": with_weights, "scale": [shortest(v) for v in scale.flatten().tolist()]}
            )
        grids.append({"duo_scaling": duo, "grid": grid, "candidates": candidates})
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("llmcompressor", "compressed-tensors", "torch")},
        "group": GROUP,
        "importance": [shortest(v) for v in means.tolist()],
        "grids": grids,
    }


def autoawq():
    import torch
    from awq.quantize.quantizer import AwqQuantizer

    grids = []
    for duo in (False, True):
        candidates = []
        for index in range(0, 20, EVERY):
            x, linears = load(torch)
            block = block_of(torch, linears)
            quantizer = AwqQuantizer.__new__(AwqQuantizer)
            quantizer.w_bit, quantizer.group_size, quantizer.zero_point, quantizer.duo_scaling = 4, GROUP, True, duo
            quantizer.max_chunk_memory, quantizer.n_parallel_calib_samples = 1 << 30, None
            # On a CPU the search keeps no copy of the weights it changes, so every run has its own.
            quantizer._compute_loss = losses_for(index)
            norm = torch.nn.LayerNorm(64)
            layer = torch.nn.Module()
            layer.norm, layer.block = norm, block
            scale = quantizer._search_best_scale(layer, norm, linears, x, module2inspect=block)[2]
            candidates.append({"ratio": index / 20, "duo": duo, "scale": [shortest(v) for v in scale.flatten().tolist()]})
        grids.append({"duo_scaling": duo, "candidates": candidates})
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("autoawq", "torch")},
        "group": GROUP,
        "grids": grids,
    }


if __name__ == "__main__":
    what = sys.argv[1]
    made = {"inputs": inputs, "llmcompressor": llmcompressor, "autoawq": autoawq}[what]()
    (HERE / f"{what}.json").write_text(json.dumps(made) + "\n")
