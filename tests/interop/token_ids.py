# SPDX-License-Identifier: Apache-2.0
"""Holds the tokenizers to the tokenizers package on everything at hand: the embedded model, the tokenizers and texts of
../shared/data, the training documents, every character, and Mistral-Small's Tekken vocabulary, which mistral-common
ships, both as it converts and with the split pattern that transformers repairs (fix_mistral_regex=True).
From the repository's root: python3 tests/interop/token_ids.py build/tests/mistral_tests
Needs: tokenizers, transformers, mistral-common."""
import json, lzma, os, subprocess, sys, tempfile
from pathlib import Path

import mistral_common
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.integrations.mistral.tokenizer import MistralConverter

SHARED = Path("../shared/data")
CONVERTED = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
             r"\s*[\r\n]+|\s+(?!\S)|\s+")


def texts():
    golden = json.loads(Path("tests/golden/tokenizer/strings.json").read_text())["strings"]
    books = [p.read_bytes().decode() for p in sorted((SHARED / "text").glob("*.txt"))]
    said = [m["content"] for line in (SHARED / "text/chat-256.jsonl").read_text().splitlines()
            for m in json.loads(line)["messages"]]
    with lzma.open(SHARED / "text/training-documents.json.xz") as f:
        documents = json.load(f)
    # Unicode 14, which Debian 12's PCRE2 knows: characters assigned since then are split by newer tables elsewhere
    from unicodedata import category
    every = ["a" + chr(c) + "B " + chr(c) * 2 + " 1" + chr(c) + "\n"
             for c in range(0x110000) if category(chr(c)) not in ("Cs", "Cn", "Co")]
    return golden + books + said + documents + every


def check(program, name, model, reference, strings):
    with tempfile.TemporaryDirectory() as folder:
        cases = Path(folder) / "cases.json"
        ids = [e.ids for i in range(0, len(strings), 1000)
               for e in reference.encode_batch(strings[i:i + 1000], add_special_tokens=False)]
        cases.write_text(json.dumps({"model": str(Path(model).resolve()), "strings": strings, "ids": ids}))
        done = subprocess.run([program, "cases that another program wrote have the ids it got"],
                              env={**os.environ, "NIBBLE_TOKENIZER_CASES": str(cases)}, capture_output=True, text=True)
    print(f"{name}: {len(strings)} strings, {sum(map(len, ids))} ids:", "equal" if done.returncode == 0 else done.stdout)
    return done.returncode == 0


def main(program):
    strings, ok = texts(), True
    for model in (Path("examples/awq_mistral/model"), SHARED / "tokenizers/mistral-7b-instruct-v0.3"):
        reference = Tokenizer.from_file(str(model / "tokenizer.json"))
        ok &= check(program, f"{model.name}, tokenizer.json", model, reference, strings)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tokenizer.model").write_bytes((model / "tokenizer.model").read_bytes())
            ok &= check(program, f"{model.name}, tokenizer.model", folder, reference, strings)
    with tempfile.TemporaryDirectory() as folder:
        tekken = MistralConverter(str(Path(mistral_common.__file__).parent / "data/tekken_240911.json")).converted()
        tekken.save(folder + "/tokenizer.json")
        ok &= check(program, "Tekken", folder, tekken, strings)
        file = json.loads(Path(folder, "tokenizer.json").read_text())
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = CONVERTED
        Path(folder, "tokenizer.json").write_text(json.dumps(file))
        Path(folder, "config.json").write_text(json.dumps({"model_type": "mistral", "transformers_version": "4.50.0"}))
        Path(folder, "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}))
        fixed = AutoTokenizer.from_pretrained(folder, fix_mistral_regex=True).backend_tokenizer
        ok &= check(program, "Tekken, pattern repaired", folder, fixed, strings)
    sys.exit(0 if ok else 1)


main(sys.argv[1])
