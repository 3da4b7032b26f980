# SPDX-License-Identifier: Apache-2.0
"""Ranges that torch's and llm-compressor's observers find: python3 make.py, where both are; writes torch.json and llmcompressor.json."""

import json
import os
from importlib.metadata import version

import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.observers import Observer
from torch.ao.quantization import MinMaxObserver, MovingAverageMinMaxObserver, PerChannelMinMaxObserver

torch.manual_seed(5)
batches = [(torch.randn(6, 5) * scale + shift) for scale, shift in ((1, 0), (3, 0.5), (0.5, -1), (2, 1))]
out = {"torch": torch.__version__, "batches": [b.tolist() for b in batches]}
whole, channels = MinMaxObserver(), PerChannelMinMaxObserver(ch_axis=1)
for b in batches:
    whole(b)
    channels(b)
out["minmax"] = [whole.min_val.item(), whole.max_val.item()]
out["channels"] = [channels.min_val.tolist(), channels.max_val.tolist()]
for constant in (0.01, 0.25):
    average = MovingAverageMinMaxObserver(averaging_constant=constant)
    steps = []
    for b in batches:
        average(b)
        steps.append([average.min_val.item(), average.max_val.item()])
    out.setdefault("moving", []).append({"constant": constant, "ranges": steps})


def write(name, what):
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), "w") as file:
        json.dump(what, file)
        file.write("\n")


write("torch.json", out)


def ranges(observer, **options):
    args = QuantizationArgs(num_bits=8, symmetric=True, strategy="tensor", observer=observer, observer_kwargs=options)
    it = Observer.load_from_registry(observer, base_name="input", args=args)
    found = []
    for b in batches:
        it(b)
        found.append([it.min_vals.item(), it.max_vals.item()])
    return found


write(
    "llmcompressor.json",
    {
        "llmcompressor": version("llmcompressor"),
        "compressed-tensors": version("compressed-tensors"),
        "torch": torch.__version__,
        "batches": out["batches"],
        "static": ranges("static_minmax"),
        "moving": [
            {"constant": constant, "ranges": ranges("minmax", averaging_constant=constant)} for constant in (0.01, 0.25)
        ],
    },
)
