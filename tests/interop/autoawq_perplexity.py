# SPDX-License-Identifier: Apache-2.0
"""Perplexity of an awq-gemm checkpoint as AutoAWQ loads it, on the CPU."""

import torch
import windows


def main():
    import awq
    import awq.models.base
    import awq.modules.linear.gemm
    import transformers

    # On a machine without a GPU AutoAWQ asks for an Intel extension that is no longer published, and takes Triton to work
    # wherever it is installed. Its plain torch path reads the same tensors.
    awq.models.base.get_best_device = lambda: "cuda:0"
    awq.modules.linear.gemm.TRITON_AVAILABLE = False
    directory, text, window, count = windows.arguments()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = awq.AutoAWQForCausalLM.from_quantized(directory, fuse_layers=False, device_map={"": "cpu"},
                                                  torch_dtype=torch.float16)
    pieces = windows.cut(windows.ids_of(tokenizer, text), window, count)
    windows.report(windows.of_torch(model.model.eval(), pieces), autoawq=awq.__version__)


if __name__ == "__main__":
    main()
