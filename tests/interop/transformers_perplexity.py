# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a checkpoint in transformers with compressed-tensors, in fp32."""

import torch
import transformers
import windows


def main():
    directory, text, window, count = windows.arguments()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    pieces = windows.cut(windows.ids_of(tokenizer, text), window, count)
    windows.report(windows.of_torch(model, pieces), transformers=transformers.__version__)


if __name__ == "__main__":
    main()
