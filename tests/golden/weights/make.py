# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of packed linears as other systems write them, with the weights those systems read back.

    python3 make.py compressed-tensors   # where compressed-tensors is: writes compressed_tensors/
    python3 make.py coded                # there too: writes coded/
    python3 make.py awq                  # where AutoAWQ is: writes awq_gemm/, awq_gemv/, awq_gemv_fast/ and marlin/
    python3 make.py gptq                 # where GPTQModel is: writes gptq/ and gptq_v2/

A directory holds config.json (quantization_config only), model.safetensors and, for each linear NAME, a tensor
NAME.expected: what the package dequantizes to, in the dtype of the scales. The versions stand in __metadata__.
"""

import json
import os
import sys

import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))


def save(name, tensors, quantization, versions):
    os.makedirs(os.path.join(HERE, name), exist_ok=True)
    metadata = {"format": "pt", **versions}
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    save_file(tensors, os.path.join(HERE, name, "model.safetensors"), metadata=metadata)
    with open(os.path.join(HERE, name, "config.json"), "w") as file:
        json.dump({"quantization_config": quantization}, file, indent=1)
        file.write("\n")


def compressed_tensors():
    import compressed_tensors as package
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor as Compressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    N, K = 12, 64  # 12 zero points of 3 bits end inside a second word
    cases = {}
    for bits, symmetric, group in ((2, True, None), (2, False, 32), (3, True, 32), (3, False, 32), (3, False, None),
                                   (4, True, 32), (4, False, 32), (4, False, None), (8, True, 32), (8, False, None)):
        cases[f"w{bits}_{'sym' if symmetric else 'asym'}_{group or 'channel'}"] = (bits, symmetric, group, torch.float32)
    cases["w4_asym_bf16"] = (4, False, 32, torch.bfloat16)
    cases["w4_asym_fp16"] = (4, False, 32, torch.float16)
    cases["w5_asym_32"] = (5, False, 32, torch.float32)
    torch.manual_seed(0)
    tensors, groups = {}, {}
    for index, (name, (bits, symmetric, group, dtype)) in enumerate(cases.items()):
        args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, group_size=group,
                                strategy="group" if group else "channel")
        scheme = QuantizationScheme(targets=[name], weights=args)
        weight = (torch.randn(N, K) * 0.1 + 0.02).to(dtype)
        blocks = weight.reshape(N, -1, group or K)
        scale, zero = calculate_qparams(blocks.amin(2), blocks.amax(2), args)
        state = {"weight": weight, "weight_scale": scale.to(dtype), "weight_zero_point": zero.to(torch.int8)}
        packed = Compressor.compress(state, scheme)
        read = Compressor.decompress(packed, scheme)["weight"]
        for key, value in packed.items():
            tensors[f"{name}.{key}"] = value
        tensors[f"{name}.expected"] = read
        # Names, patterns and the class all find their group.
        target = name if index % 2 == 0 else f"re:{name[:-1]}."
        groups[f"group_{index}"] = {
            "format": "pack-quantized", "input_activations": None, "output_activations": None, "targets": [target],
            "weights": {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group,
                        "strategy": "group" if group else "channel", "dynamic": False, "actorder": None}}
    tensors["left.weight"] = torch.randn(4, 8)
    tensors["left.expected"] = tensors["left.weight"].clone()
    save("compressed_tensors", tensors,
         {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
          "ignore": ["re:.*ef", "lm_head"], "config_groups": groups},
         {"compressed-tensors": package.__version__, "torch": torch.__version__})


def coded():
    """A byte a code: int-quantized and float-quantized, whose inputs are rounded too."""
    import compressed_tensors as package
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.quant_scheme import QuantizationScheme, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams

    N, K = 130, 136  # a whole block of 128, and some more
    static = preset_name_to_scheme("W8A8", ["x"]).model_dump()
    static["input_activations"].update(dynamic=False, strategy="tensor")
    schemes = {"w8a8": preset_name_to_scheme("W8A8", ["x"]), "w8a8_static": QuantizationScheme(**static)}
    for preset in ("FP8", "FP8_DYNAMIC", "FP8_BLOCK"):
        schemes[preset.lower()] = preset_name_to_scheme(preset, ["x"])
    torch.manual_seed(3)
    tensors, groups = {}, {}
    for index, (name, scheme) in enumerate(schemes.items()):
        args = scheme.weights
        block = args.strategy == "block"
        n, k = (N, K) if block else (9, 24)
        weight = (torch.randn(n, k) * 0.1 + 0.01).to(torch.bfloat16)
        if block:
            padded = torch.zeros(256, 256, dtype=weight.dtype)
            padded[:n, :k] = weight
            parts = padded.reshape(2, 128, 2, 128).transpose(1, 2).flatten(2)
        else:
            parts = weight.reshape(1, 1, -1) if args.strategy == "tensor" else weight.reshape(n, 1, -1)
        scale, zero = calculate_qparams(parts.amin(2), parts.amax(2), args)
        scale = scale.reshape(-1) if args.strategy == "tensor" else scale
        format_ = "int-quantized" if args.type == "int" else "float-quantized"
        scheme.targets, scheme.format = [name], format_
        state = {"weight": weight, "weight_scale": scale.to(weight.dtype)}
        kind = BaseCompressor.get_value_from_registry(format_)
        packed = kind.compress(state, scheme)
        read = kind.decompress(dict(packed), scheme)["weight"]
        for key, value in packed.items():
            tensors[f"{name}.{key}"] = value
        if scheme.input_activations.dynamic is False:
            tensors[f"{name}.input_scale"] = torch.tensor([0.03125 * (index + 1)], dtype=weight.dtype)
        tensors[f"{name}.expected"] = read
        groups[f"group_{index}"] = json.loads(scheme.model_dump_json())
    save("coded", tensors,
         {"quant_method": "compressed-tensors", "format": "mixed-precision", "quantization_status": "compressed",
          "ignore": ["lm_head"], "config_groups": groups},
         {"compressed-tensors": package.__version__, "torch": torch.__version__})


def awq():
    import awq as package
    from awq.modules.linear import WQLinear_GEMM, WQLinear_GEMV
    from awq.utils.packing_utils import dequantize_gemm

    N, K = 32, 64  # its from_linear packs 32 outputs at a time
    name = "model.layers.0.mlp.up_proj"
    for version, kind in (("gemm", WQLinear_GEMM), ("gemv", WQLinear_GEMV)):
        torch.manual_seed(1)
        tensors = {}
        group = 32
        linear = torch.nn.Linear(K, N, bias=False)
        linear.weight.data = torch.randn(N, K) * 0.1 + 0.02
        blocks = linear.weight.data.reshape(N, -1, group)
        low, high = blocks.amin(2), blocks.amax(2)
        scale = ((high - low).clamp(min=1e-5) / 15).half().float()
        zero = (-torch.round(low / scale)).clamp(0, 15)
        wide_scale, wide_zero = (t.repeat_interleave(group, 1) for t in (scale, zero))
        code = (torch.round(linear.weight.data / wide_scale) + wide_zero).clamp(0, 15)
        linear.weight.data = (code - wide_zero) * wide_scale
        gemm = WQLinear_GEMM.from_linear(linear, 4, group, False, scale.t().contiguous(), zero.t().contiguous())
        turned = (scale.t().contiguous(), zero.t().contiguous()) if version == "gemm" else (scale, zero)
        packed = kind.from_linear(linear, 4, group, False, *turned)
        for key, value in packed.state_dict().items():
            tensors[f"{name}.{key}"] = value
        read = dequantize_gemm(gemm.qweight, gemm.qzeros, gemm.scales, 4, group)
        tensors[f"{name}.expected"] = read.t().contiguous()
        tensors["lm_head.weight"] = torch.randn(4, 8)
        tensors["lm_head.expected"] = tensors["lm_head.weight"].clone()
        save(f"awq_{version}", tensors,
             {"quant_method": "awq", "zero_point": True, "group_size": group, "bits": 4, "version": version,
              "modules_to_not_convert": None},
             {"autoawq": package.__version__, "torch": torch.__version__})


def awq_kernels():
    """Of these AutoAWQ has GPU kernels only: what the stored numbers mean is multiplied out here."""
    import awq as package
    from awq.modules.linear import WQLinear_GEMVFast, WQLinear_Marlin

    name = "model.layers.0.mlp.up_proj"
    versions = {"autoawq": package.__version__, "torch": torch.__version__}
    for version, kind, (N, K), group in (("gemv_fast", WQLinear_GEMVFast, (8, 128), 64),
                                         ("marlin", WQLinear_Marlin, (64, 256), 128)):
        torch.manual_seed(2)
        symmetric = version == "marlin"
        linear = torch.nn.Linear(K, N, bias=False)
        weight = torch.randn(N, K) * 0.1 + 0.02
        blocks = weight.reshape(N, -1, group)
        low, high = blocks.amin(2), blocks.amax(2)
        if symmetric:
            scale = (blocks.abs().amax(2) / 7).half()
            zero = torch.full_like(scale, 8).float()
        else:
            scale = ((high - low) / 15).half()
            zero = (-torch.round(low / scale.float())).clamp(0, 15)
        wide_scale, wide_zero = (t.float().repeat_interleave(group, 1) for t in (scale, zero))
        code = (torch.round(weight / wide_scale) + wide_zero).clamp(0, 15)
        linear.weight.data = (code - wide_zero) * wide_scale
        packed = kind.from_linear(linear, 4, group, False, scale, None if symmetric else zero)
        tensors = {f"{name}.{key}": value for key, value in packed.state_dict().items()}
        tensors[f"{name}.expected"] = linear.weight.data.half()
        save("marlin" if symmetric else f"awq_{version}", tensors,
             {"quant_method": "awq", "zero_point": not symmetric, "group_size": group, "bits": 4, "version": version,
              "modules_to_not_convert": None}, versions)


def gptq():
    import gptqmodel as package
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    N, K, group = 32, 64, 32
    versions = {"gptqmodel": package.__version__, "torch": torch.__version__}
    base = {"bits": 4, "group_size": group, "sym": False, "desc_act": False}
    cases = [(bits, symmetric, ordered, size) for bits in (2, 3, 4, 8) for symmetric, ordered, size in
             ((False, False, group), (False, True, group), (True, False, -1))]
    for version in (1, 2):
        torch.manual_seed(3)
        tensors, dynamic = {}, {r"-:.*\.down_proj": {}}
        for bits, symmetric, ordered, size in cases:
            if version == 2 and bits in (2, 8):  # the versions differ in their zero points alone
                continue
            name = f"model.layers.{bits}.w{'s' if symmetric else 'a'}{'o' if ordered else ''}{size if size > 0 else 'c'}"
            width = size if size > 0 else K
            top, middle = 2**bits - 1, 2 ** (bits - 1)
            weight = torch.randn(N, K) * 0.1 + 0.02
            group_of = torch.arange(K, dtype=torch.int32) // width
            if ordered:
                group_of = group_of[torch.randperm(K)].contiguous()
            scale, zero = torch.empty(N, K // width), torch.empty(N, K // width)
            for g in range(K // width):
                block = weight[:, group_of == g]
                low, high = block.amin(1).clamp(max=0), block.amax(1).clamp(min=0)
                if symmetric:
                    low, high = -torch.maximum(-low, high), torch.maximum(-low, high)
                scale[:, g] = ((high - low) / top).half().float()
                # The first format has no zero point of 0.
                zero[:, g] = middle if symmetric else (-torch.round(low / scale[:, g])).clamp(2 - version, top)
            wide_scale, wide_zero = scale[:, group_of.long()], zero[:, group_of.long()]
            code = (torch.round(weight / wide_scale) + wide_zero).clamp(0, top)
            linear = torch.nn.Linear(K, N, bias=False)
            linear.weight.data = (code - wide_zero) * wide_scale
            module = TorchLinear(bits=bits, group_size=size, desc_act=ordered, sym=symmetric, in_features=K,
                                 out_features=N, bias=False, pack_dtype=torch.int32)
            module.pack_block(linear, scale, zero, group_of)
            read = module.dequantize_weight().t().contiguous()
            assert torch.equal(read, linear.weight.data.half()), name
            if version == 1:
                convert_gptq_v2_to_v1_format_module(module, QuantizeConfig(bits=bits))
            for key in ("qweight", "qzeros", "scales", "g_idx"):
                tensors[f"{name}.{key}"] = getattr(module, key)
            tensors[f"{name}.expected"] = read
            pattern = name.replace(".", r"\.")
            dynamic[f"+:{pattern}$"] = {"bits": bits, "group_size": size, "sym": symmetric, "desc_act": ordered}
        for left in ("model.layers.2.down_proj", "lm_head"):
            tensors[f"{left}.weight"] = torch.randn(4, 8)
            tensors[f"{left}.expected"] = tensors[f"{left}.weight"].clone()
        config = QuantizeConfig(format="gptq" if version == 1 else "gptq_v2", dynamic=dynamic, **base).to_dict()
        config["meta"].pop("offload_to_disk_path", None)
        save("gptq" if version == 1 else "gptq_v2", tensors, config, versions)


if __name__ == "__main__":
    {"compressed-tensors": compressed_tensors, "coded": coded, "awq": lambda: (awq(), awq_kernels()), "gptq": gptq}[sys.argv[1]]()
