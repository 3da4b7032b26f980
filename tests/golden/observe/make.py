# SPDX-License-Identifier: Apache-2.0
"""Ranges that torch's observers find: python3 make.py, where torch is; writes torch.json."""

import json
import os

import torch
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
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch.json"), "w") as file:
    json.dump(out, file)
    file.write("\n")
