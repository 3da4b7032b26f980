# SPDX-License-Identifier: Apache-2.0
"""llmcompressor_seconds.py MODEL TEXT SAMPLES [awq|gptq [LENGTH]]

Runs llm-compressor's AWQ or GPTQ (4 bits, asymmetric, groups of 128, its defaults otherwise) on the first SAMPLES windows of
LENGTH tokens of TEXT, and prints one line, RESULT {...}, with the seconds it took in all and in the search for scales.
"""
import json
import sys
import time

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.awq import AWQModifier
from llmcompressor.modifiers.quantization import GPTQModifier
from llmcompressor.modifiers.transform.awq import base
from transformers import AutoModelForCausalLM, AutoTokenizer
import llmcompressor.pipelines.cache as cache

model_dir, text, samples = sys.argv[1], sys.argv[2], int(sys.argv[3])
modifier = {"awq": AWQModifier, "gptq": GPTQModifier}[sys.argv[4] if len(sys.argv) > 4 else "awq"]
length = int(sys.argv[5]) if len(sys.argv) > 5 else 512
torch.set_num_threads(2)
for kept in vars(cache).values():  # pinning memory needs a GPU
    if isinstance(kept, type) and hasattr(kept, "pin_memory"):
        kept.pin_memory = lambda self, *args, **kwargs: None

tokenizer = AutoTokenizer.from_pretrained(model_dir)
model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
ids = tokenizer(open(text).read(), add_special_tokens=False, verbose=False).input_ids
windows = [ids[i * length:(i + 1) * length] for i in range(samples)]
data = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * length for _ in windows]})

seconds = {"search": 0.0}
apply_smoothing = base.AWQModifier._apply_smoothing


def timed(self, *args, **kwargs):
    start = time.perf_counter()
    try:
        return apply_smoothing(self, *args, **kwargs)
    finally:
        seconds["search"] += time.perf_counter() - start


base.AWQModifier._apply_smoothing = timed
weights = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=128)
recipe = modifier(config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, ignore=["lm_head"])
start = time.perf_counter()
oneshot(model=model, recipe=recipe, dataset=data, max_seq_length=length, num_calibration_samples=samples,
        shuffle_calibration_samples=False)
seconds["quantization"] = time.perf_counter() - start
print("RESULT", json.dumps(seconds), flush=True)
