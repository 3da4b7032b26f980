# SPDX-License-Identifier: Apache-2.0
"""Loads a checkpoint's recipe.yaml with llm-compressor, and checks that it means for every linear what config.json says."""

import os
import sys

import llmcompressor
import torch
import transformers
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from llmcompressor.recipe import Recipe


def rounding(args):
    """What counts of QuantizationArgs: type, bits, symmetry, and what shares a scale; None where nothing is rounded."""
    if args is None:
        return None
    group = args.group_size if args.strategy == "group" else None
    return args.type, args.num_bits, args.symmetric, args.strategy, group, args.block_structure, bool(args.dynamic)


def packings(config, quantization):
    """How weights and inputs of every linear that is quantized are rounded."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    apply_quantization_config(model, quantization, show_progress=False)
    found = {}
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            found[name] = rounding(scheme.weights), rounding(scheme.input_activations)
    return found


directory = sys.argv[1]
config = transformers.AutoConfig.from_pretrained(directory)
written = QuantizationConfig.model_validate(config.quantization_config)
del config.quantization_config
modifiers = Recipe.create_instance(os.path.join(directory, "recipe.yaml")).modifiers
for smooth in (m for m in modifiers if type(m).__name__ == "SmoothQuantModifier"):
    assert 0 <= smooth.smoothing_strength <= 1, smooth
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    smooth.mappings = smooth._infer_mappings_from_model(model)
    smooth.ignore = []
    smoothed = {(name, len(readers)) for name, readers in
                ((m.smooth_name.split(".")[-1], m.balance_layers) for m in smooth._resolve_mappings(model))}
    assert {("input_layernorm", 3), ("post_attention_layernorm", 2)} <= smoothed, smoothed
    print("smoothed:", *sorted(name for name, _ in smoothed))
quantizers = [m for m in modifiers if type(m).__name__ in ("QuantizationModifier", "GPTQModifier")]
assert len(quantizers) == 1, modifiers
meant = packings(config, quantizers[0].resolved_config)
assert meant and meant == packings(config, written), meant
print("RESULT", len(meant), "linears alike,", *(type(m).__name__ for m in modifiers), llmcompressor.__version__)
