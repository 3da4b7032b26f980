# SPDX-License-Identifier: Apache-2.0
"""Seconds of GPTQ as published (arXiv 2210.17323), in torch, on linears of the shapes that bench_gptq takes: the Hessian of 4096
tokens, its factor by two Cholesky factorisations and an inverse between, and the columns one after another in blocks of 128,
asymmetric 4-bit min-max ranges found when a group of 128 begins.
    python3 gptq_seconds.py [THREADS]"""

import sys
import time

import torch

torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
torch.manual_seed(3)
K, GROUP, BLOCK = 4096, 128, 128


def factor(h):
    h = h + 0.01 * torch.diagonal(h).mean() * torch.eye(K)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def solve(w, u):
    w = w.clone()
    codes = torch.empty_like(w, dtype=torch.uint8)
    for first in range(0, K, BLOCK):
        block = w[:, first:first + BLOCK].clone()
        own = u[first:first + BLOCK, first:first + BLOCK]
        errors = torch.zeros_like(block)
        for i in range(BLOCK):
            if (first + i) % GROUP == 0:
                group = block[:, i:i + GROUP]
                low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
                scale = ((high - low) / 15).clamp(min=1e-12)
                zero = torch.round(-low / scale)
            column = block[:, i]
            q = (torch.round(column / scale) + zero).clamp(0, 15)
            codes[:, first + i] = q.to(torch.uint8)
            error = (column - (q - zero) * scale) / own[i, i]
            block[:, i:] -= error[:, None] * own[i, i:][None, :]
            errors[:, i] = error
        w[:, first + BLOCK:] -= errors @ u[first:first + BLOCK, first + BLOCK:]
    return codes


def seconds(f):
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        out = f()
        best = min(best, time.perf_counter() - start)
    return best, out


x = torch.randn(K, K)
print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
spent, h = seconds(lambda: x.T @ x / K)
print(f"statistics {spent * 1e3:8.0f} ms")
spent, u = seconds(lambda: factor(h))
print(f"factorise  {spent * 1e3:8.0f} ms")
for rows in (4096, 14336):
    w = 0.02 * torch.randn(rows, K)
    spent, _ = seconds(lambda: solve(w, u))
    print(f"solve {rows:5} x {K} {spent * 1e3:8.0f} ms")
