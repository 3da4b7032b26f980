#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Distortion of rows of logits as torch computes it in double, for tests/distortion.cpp: python3 make.py (needs torch)."""
import json
import pathlib

import torch

torch.manual_seed(11)
# Multiples of 2^-10 are exact in JSON's decimals and in float32.
p = torch.round(torch.randn(6, 32) * torch.tensor([0.1, 1, 5, 30, 1, 4])[:, None] * 1024) / 1024
q = torch.round((p + torch.randn(6, 32) * torch.tensor([0.01, 0.1, 1, 2, 1, 0.001])[:, None]) * 1024) / 1024
x, y = p.double(), q.double()
log_p, log_q = x.log_softmax(-1), y.log_softmax(-1)
made = {
    "versions": {"torch": torch.__version__},
    "p": p.tolist(),
    "q": q.tolist(),
    "kl_divergence": torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).tolist(),
    "mse": ((y - x) ** 2).mean(-1).tolist(),
    "sqnr": (10 * torch.log10((x**2).sum(-1) / ((y - x) ** 2).sum(-1))).tolist(),
    "cosine": torch.nn.functional.cosine_similarity(x, y, dim=-1).tolist(),
    "max_error": (y - x).abs().amax(-1).tolist(),
}
(pathlib.Path(__file__).parent / "logits.json").write_text(json.dumps(made, separators=(",", ":")) + "\n")
