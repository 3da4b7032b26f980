# SPDX-License-Identifier: Apache-2.0
"""Perplexities of the embedded model in transformers, in fp32, over the windows that evaluate.hpp defines, and the
divergence from it of the same model with row r of its head times 1 + (r mod 8) / 16.

    python3 make.py > figures.json
"""

import json
import math
import os

import torch
import transformers

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "examples", "awq_mistral")
TEXTS = ["heldout-state-of-the-union-2013-2021.txt", "heldout-persuasion.txt"]


@torch.no_grad()
def score(model, other, ids, window, stride, windows):
    """Sums over scored positions of -ln p, KL(model || other) and whether both prefer the same token; their number."""
    sums, scored, count, begin = [0.0, 0.0, 0], 0, 0, 0
    while scored < len(ids) - 1 and count < windows:
        end = min(begin + window, len(ids) - 1)
        new = end - scored
        x, y = ids[begin:end], ids[begin + 1:end + 1][-new:]
        p = torch.log_softmax(model(x[None]).logits[0, -new:].double(), -1)
        sums[0] -= p.gather(1, y[:, None]).sum().item()
        if other is not None:
            q = torch.log_softmax(other(x[None]).logits[0, -new:].double(), -1)
            sums[1] += (p.exp() * (p - q)).sum().item()
            sums[2] += (p.argmax(-1) == q.argmax(-1)).sum().item()
        scored, count, begin = end, count + 1, begin + stride
    return sums, scored, count


def main():
    directory = os.path.join(ROOT, "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    load = lambda: transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model, uneven = load(), load()
    uneven.lm_head.weight.data *= 1 + (torch.arange(len(uneven.lm_head.weight)) % 8)[:, None] / 16
    figures = {"versions": {"transformers": transformers.__version__, "torch": torch.__version__}, "figures": []}
    for text in TEXTS:
        with open(os.path.join(ROOT, "text", text)) as file:
            ids = tokenizer(file.read(), add_special_tokens=False, verbose=False).input_ids
        ids = torch.tensor([1] + ids)
        for window, stride, windows, compare in [(512, 512, 60, False), (512, 256, 40, False), (300, 100, 20, True)]:
            sums, scored, count = score(model, uneven if compare else None, ids, window, stride, windows)
            figure = {"text": text, "window": window, "stride": stride, "windows": count, "tokens": scored,
                      "perplexity": math.exp(sums[0] / scored)}
            if compare:
                figure.update(divergence_of_uneven_head=sums[1] / scored, agreement_of_uneven_head=sums[2] / scored)
            figures["figures"].append(figure)
    # The end of the text: the last window is short.
    sums, scored, count = score(model, None, ids[:1301], 512, 512, 10)
    figures["first_1300_ids"] = {"text": TEXTS[1], "window": 512, "stride": 512, "windows": count, "tokens": scored,
                                 "perplexity": math.exp(sums[0] / scored)}
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
