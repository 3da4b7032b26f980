# SPDX-License-Identifier: Apache-2.0
"""GGUF files of the embedded model in the Python packages gguf and xllamacpp: shapes, values, token ids, answers.
    gguf_check.py BUILD FILE.gguf…
Values go to the test "values that another program read", which compares them bit for bit with what our reader gives."""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from gguf_llama import Model

GOLDEN = Path(__file__).parents[1] / "golden"
PROMPTS = ["The state of the Union", "We have", "In the last year", "My fellow Americans,"]
TOKENS = 20


def check_values(build, path):
    """Every tensor, dequantized by the package, as our reader dequantizes it."""
    reader = gguf.GGUFReader(path)
    with tempfile.TemporaryDirectory() as folder:
        for tensor in reader.tensors:
            if tensor.tensor_type.name == "BF16":
                values = (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert values.size == int(np.prod(tensor.shape)), tensor.name
            (Path(folder) / f"{tensor.name}.f32").write_bytes(np.ascontiguousarray(values, dtype=np.float32).tobytes())
        done = subprocess.run([build / "bin/mistral_tests", "values that another program read from a GGUF file are ours"],
                              env={**os.environ, "NIBBLE_GGUF": str(Path(path).resolve()), "NIBBLE_GGUF_VALUES": folder},
                              capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return len(reader.tensors)


def check_ids(model):
    """The ids of the tokenizers package, which our tests hold ours to. llama.cpp puts a space before a text that begins with one, and
    behind [INST] and its like, as neither of the two does: those texts are left out."""
    golden = json.loads((GOLDEN / "tokenizer/strings.json").read_text())
    strings, ids = golden["strings"], golden["tokenizers"]["tiny"]["ids"]
    same = compared = 0
    for text, expected in zip(strings, ids):
        if any(mark in text for mark in ("<s>", "</s>", "<unk>", "INST]")) or text[:1] in ("", " ", "\u2581"):
            continue
        compared += 1
        if model.ids(text, framed=False) == expected:
            same += 1
        else:
            print("ids differ:", repr(text)[:80], model.ids(text, framed=False)[:12], expected[:12])
    assert same == compared
    return compared


def check_answers(build, path, model):
    """Greedy ids; where they part, how close llama.cpp's two best logits are, which rounding activations to 8 bits may swap."""
    same = 0
    for prompt in PROMPTS:
        done = subprocess.run([build / "bin/generate", "--model", path, "--prompt", prompt, "--max-new-tokens", str(TOKENS),
                               "--json"], capture_output=True, text=True, check=True)
        ours = json.loads(done.stdout[done.stdout.index("{"):])["answers"][0]["ids"]
        ids = model.ids(prompt)
        theirs = model.greedy(ids, TOKENS)[len(ids):]
        parts = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), TOKENS)
        same += parts == TOKENS
        if parts < TOKENS:
            best = np.sort(model.logits(ids + theirs[:parts])[-1])[-2:]
            print(f"{Path(path).name}: {prompt!r} parts at token {parts + 1}, where llama.cpp's best logits are"
                  f" {best[1] - best[0]:.3f} apart")
    return same


def main():
    build = Path(sys.argv[1])
    for path in sys.argv[2:]:
        model = Model(path)
        print(f"{Path(path).name}: values of {check_values(build, path)} tensors equal, ids of {check_ids(model)} texts equal,"
              f" {check_answers(build, path, model)} of {len(PROMPTS)} answers of {TOKENS} tokens the same")


main()
