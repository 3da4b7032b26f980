# SPDX-License-Identifier: Apache-2.0
"""What the scripts here share: the windows that examples/mistral/evaluate.hpp defines, without overlap, and the result."""

import json
import math
import sys


def arguments():
    """DIRECTORY TEXT WINDOW WINDOWS"""
    if len(sys.argv) != 5:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY TEXT WINDOW WINDOWS")
    return sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def ids_of(tokenizer, text):
    with open(text, encoding="utf-8") as file:
        return [tokenizer.bos_token_id] + tokenizer.encode(file.read(), add_special_tokens=False)


def cut(ids, window, windows):
    """Each window's ids and the one after: window + 1 ids, of which all but the first are scored."""
    pieces = [ids[at : at + window + 1] for at in range(0, len(ids) - 1, window)]
    return pieces[:windows]


def of_torch(model, pieces):
    """Perplexity of a torch model that returns logits."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for piece in pieces:
            x = torch.tensor(piece)
            logits = model(x[None, :-1]).logits[0].float()
            total += torch.nn.functional.cross_entropy(logits, x[1:], reduction="sum").item()
            count += len(piece) - 1
    return math.exp(total / count)


def report(perplexity, **versions):
    print("RESULT " + json.dumps({"perplexity": perplexity, **versions}), flush=True)
