# SPDX-License-Identifier: Apache-2.0
"""Greedy text of transformers, in fp32: 50 tokens after each line of prompts.txt, for the embedded model and for what

    awq_mistral --method rtn --output PACKED

writes (round to nearest: elementwise, so every machine writes the same bytes). Of each answer `close` lists the steps at which
the two best logits were less than 0.01 apart: step, the second token, and the gap.

    python3 make.py PACKED > greedy.json
"""

import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "interop"))

import torch  # noqa: E402
import transformers  # noqa: E402
import transformers_generate as peer  # noqa: E402


def main():
    embedded = os.path.join(HERE, "..", "..", "..", "examples", "awq_mistral", "model")
    with open(os.path.join(HERE, "prompts.txt")) as file:
        prompts = file.read().splitlines()
    import compressed_tensors
    rows = []
    for name, directory in (("embedded", embedded), ("packed", sys.argv[1])):
        tokenizer, model = peer.load(directory)
        answers = []
        for prompt in prompts:
            ids, text, steps = peer.greedy(tokenizer, model, prompt, 50)
            close = [[i, second, gap] for i, (gap, second) in enumerate(steps) if gap < 0.01]
            answers.append({"ids": ids, "text": text, "close": close})
        rows.append({"checkpoint": name, "answers": answers})
    versions = {"transformers": transformers.__version__, "torch": torch.__version__,
                "compressed-tensors": compressed_tensors.__version__}
    print('{"versions": ' + json.dumps(versions) + ',\n "checkpoints": [')
    for row in rows:
        answers = ",\n   ".join(json.dumps(answer) for answer in row.pop("answers"))
        print(" " + json.dumps(row)[:-1] + ', "answers": [\n   ' + answers + "]}" + ("," if row is not rows[-1] else ""))
    print("]}")


if __name__ == "__main__":
    main()
