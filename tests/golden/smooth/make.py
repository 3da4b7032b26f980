#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scales of llm-compressor's SmoothQuantModifier, and the weights that it folds them into, for tests/smooth.cpp.

    python3 make.py     llmcompressor.json; needs llmcompressor

A norm's weight (24), activations (8, 24) behind it and two linears (5, 24) and (3, 24) that read them, all float32. Rows 4 to 7 of the
activations are rows 0 to 3 negated: llm-compressor's range, largest minus least, then is twice the largest magnitude. The
modifier's own hooks see the activations and its own code folds. Channel 5 is dead; weights of channel 9 are 0.
"""
import importlib.metadata
import json
import pathlib
import random
import struct

import torch
from llmcompressor.modifiers.transform.smoothquant.base import SmoothQuantMapping, SmoothQuantModifier

HERE = pathlib.Path(__file__).parent
CHANNELS = 24


def shortest(x):
    """The number with the fewest digits that is x in float32."""
    x = struct.unpack("f", struct.pack("f", x))[0]
    texts = (float(f"{x:.{digits}g}") for digits in range(1, 10))
    return next(text for text in texts if struct.pack("f", text) == struct.pack("f", x))


def numbers(tensor):
    return [shortest(x) for x in tensor.flatten().tolist()]


class Norm(torch.nn.Module):
    """What a norm does last, and all that folding touches: a weight a channel."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())

    def forward(self, x):
        return x * self.weight


def linear(weight):
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = torch.nn.Parameter(weight.clone())
    return made


def main():
    draw = random.Random(5)
    norm = torch.tensor([round(draw.uniform(0.2, 2), 3) for _ in range(CHANNELS)])
    loud = [draw.lognormvariate(0, 1.5) for _ in range(CHANNELS)]
    loud[5] = 0.0
    rows = lambda n, size: torch.tensor([[round(draw.gauss(0, size[j]), 3) for j in range(CHANNELS)] for _ in range(n)])
    half = rows(4, loud)
    normed = torch.cat([half, -half])
    sizes = [0 if j == 9 else 0.5 for j in range(CHANNELS)]
    weights = [rows(5, sizes), rows(3, sizes)]

    made = {
        "versions": {name: importlib.metadata.version(name) for name in ("llmcompressor", "torch")},
        "norm": numbers(norm),
        "normed": [numbers(row) for row in normed],
        "activations": [numbers(row) for row in normed * norm],
        "linears": [[numbers(row) for row in w] for w in weights],
        "runs": [],
    }
    for alpha in (0.0, 0.5, 0.8, 1.0):
        layer, linears = Norm(norm), [linear(w) for w in weights]
        modifier = SmoothQuantModifier(smoothing_strength=alpha)
        modifier.resolved_mappings_ = [SmoothQuantMapping("norm", layer, linears)]
        modifier.scales_ = {}
        modifier._setup_scale_hooks()
        layer(normed)
        seen = modifier.scales_["norm"]
        scales = modifier._calculate_smoothing_scales(linears, seen.max_channel_vals - seen.min_channel_vals)
        modifier._apply_smoothing(None)
        made["runs"].append({
            "alpha": alpha,
            "scales": numbers(scales),
            "norm": numbers(layer.weight.detach()),
            "linears": [[numbers(row) for row in made_of.weight.detach()] for made_of in linears],
        })
    (HERE / "llmcompressor.json").write_text(json.dumps(made) + "\n")


main()
