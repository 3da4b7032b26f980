# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a gptq or gptq-v2 checkpoint as GPTQModel loads it, on the CPU, through its plain torch kernel."""

import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # unless told, it asks for more cores than a small machine has

import windows


def main():
    import gptqmodel
    import transformers

    directory, text, window, count = windows.arguments()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = gptqmodel.GPTQModel.load(directory, device="cpu", backend=gptqmodel.BACKEND.TORCH)
    pieces = windows.cut(windows.ids_of(tokenizer, text), window, count)
    windows.report(windows.of_torch(model.model.eval(), pieces), gptqmodel=gptqmodel.__version__)


if __name__ == "__main__":
    main()
