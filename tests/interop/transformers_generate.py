# SPDX-License-Identifier: Apache-2.0
"""Greedy text of a checkpoint in transformers, in fp32, beside that of generate.

    python3 transformers_generate.py GENERATE MODEL PROMPTS.txt [TOKENS]

A prompt a line. Fp32 sums in another order move logits by some 1e-6 of their size, so two tokens that are closer than
that may change places: where the texts part, the gap between transformers' two best logits there is printed. Exit status 1 when
they part at a gap of more than 1e-4.
"""

import json
import subprocess
import sys

import torch
import transformers


def load(directory):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.no_grad()
def greedy(tokenizer, model, prompt, tokens):
    """Ids that follow the prompt, their text, and of each step the gap to the second token and its id."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                         return_dict_in_generate=True, output_logits=True)
    new = out.sequences[0, ids.shape[1]:].tolist()
    steps = []
    for logits in out.logits:
        best = torch.topk(logits[0], 2)
        steps.append((float(best.values[0] - best.values[1]), int(best.indices[1])))
    stop = model.generation_config.eos_token_id
    if new and new[-1] in (stop if isinstance(stop, list) else [stop]):
        new.pop()
    before = tokenizer.decode(ids[0], skip_special_tokens=True)
    text = tokenizer.decode(ids[0].tolist() + new, skip_special_tokens=True)
    return new, text[len(before):] if text.startswith(before) else text, steps


def main():
    program, directory, prompts = sys.argv[1:4]
    tokens = int(sys.argv[4]) if len(sys.argv) > 4 else 50
    tokenizer, model = load(directory)
    with open(prompts) as file:
        lines = file.read().splitlines()
    equal = far = 0
    for line in lines:
        theirs, text, steps = greedy(tokenizer, model, line, tokens)
        command = [program, "--model", directory, "--prompt", line, "--max-new-tokens", str(tokens), "--json"]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["answers"][0]
        if ours["ids"] == theirs and ours["text"] == text:
            equal += 1
            continue
        pairs = zip(ours["ids"] + [None], theirs + [None])
        step = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        gap = 0.0 if step is None else steps[min(step, len(steps) - 1)][0]
        far += step is None or gap > 1e-4
        print(f"{line[:40]!r}: " + ("the same ids, other text" if step is None else
                                    f"parts at token {step + 1}, where the two best logits are {gap:.2g} apart"))
    print("RESULT", json.dumps({"prompts": len(lines), "equal": equal, "parted_at_ties": len(lines) - equal - far,
                                "parted": far, "transformers": transformers.__version__, "torch": torch.__version__}))
    sys.exit(1 if far else 0)


if __name__ == "__main__":
    main()
