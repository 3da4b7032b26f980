# SPDX-License-Identifier: Apache-2.0
"""Loads a checkpoint's recipe.yaml with llm-compressor, and checks that it means for every linear what config.json says."""

import os
import sys

import llmcompressor
import torch
import transformers
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from llmcompressor.recipe import Recipe


def packings(config, quantization):
    """(bits, symmetric, inputs that share a scale; None: all) of every linear that is quantized."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    apply_quantization_config(model, quantization, show_progress=False)
    found = {}
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            weights = scheme.weights
            group = weights.group_size if weights.strategy == "group" else None
            found[name] = (weights.num_bits, weights.symmetric, group)
    return found


directory = sys.argv[1]
config = transformers.AutoConfig.from_pretrained(directory)
written = QuantizationConfig.model_validate(config.quantization_config)
del config.quantization_config
modifiers = Recipe.create_instance(os.path.join(directory, "recipe.yaml")).modifiers
quantizers = [m for m in modifiers if type(m).__name__ in ("QuantizationModifier", "GPTQModifier")]
assert len(quantizers) == 1, modifiers
meant = packings(config, quantizers[0].resolved_config)
assert meant and meant == packings(config, written), meant
print("RESULT", len(meant), "linears alike,", *(type(m).__name__ for m in modifiers), llmcompressor.__version__)
