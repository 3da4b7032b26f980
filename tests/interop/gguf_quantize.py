# SPDX-License-Identifier: Apache-2.0
"""Whole files beside llama.cpp's own quantizer: the type of every tensor and every byte of it.
    gguf_quantize.py BUILD LLAMA_QUANTIZE [MODEL]
Goes through all mixes, with an importance matrix and without, for MODEL (the embedded one unless given) and for random models of 32 and of
80 layers, of which some have four query heads a key's and some one, and whose rows are not all whole blocks of 256."""
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

EMBEDDED = Path(__file__).parents[2] / "examples/awq_mistral/model"
TYPES = ["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
         "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"]


def random_model(folder, layers, heads, kv_heads, hidden, intermediate, tied):
    """A checkpoint of heavy-tailed weights with the embedded model's tokenizer."""
    rng = np.random.default_rng(layers * 1000 + intermediate)
    config = json.loads((EMBEDDED / "config.json").read_text())
    config.update(num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, hidden_size=hidden,
                  intermediate_size=intermediate, head_dim=hidden // heads, tie_word_embeddings=tied)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in EMBEDDED.iterdir():
        if name.name.startswith("tokenizer") or name.name.startswith("special"):
            shutil.copy(name, folder)
    def weights(*shape):
        return (rng.standard_normal(shape) * rng.uniform(0.01, 0.1, shape)).astype(np.float32)
    kv = hidden // heads * kv_heads
    tensors = {"model.embed_tokens.weight": weights(config["vocab_size"], hidden), "model.norm.weight": weights(hidden)}
    if not tied:
        tensors["lm_head.weight"] = weights(config["vocab_size"], hidden)
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
              "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (intermediate, hidden), "mlp.up_proj": (intermediate, hidden),
              "mlp.down_proj": (hidden, intermediate), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    for layer in range(layers):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = weights(*shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_importance(path, plain):
    """A random matrix for every linear of the file, as llama-imatrix writes it."""
    rng = np.random.default_rng(7)
    out = gguf.GGUFWriter(path, "")
    out.add_type("imatrix")
    out.add_array("imatrix.datasets", ["random"])
    out.add_uint32("imatrix.chunk_count", 4)
    out.add_uint32("imatrix.chunk_size", 512)
    for tensor in gguf.GGUFReader(plain).tensors:
        if len(tensor.shape) > 1 and tensor.name != "token_embd.weight":
            out.add_tensor(tensor.name + ".in_sum2", (rng.lognormal(0, 2, (1, int(tensor.shape[0]))) * 4).astype(np.float32))
            out.add_tensor(tensor.name + ".counts", np.full((1, 1), 4, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def meant(ours, theirs):
    """Rows that are no whole blocks of Q2_K and Q3_K: IQ4_NL here, Q4_0 of as many bits and more error there."""
    return ours.shape[0] % 256 != 0 and (ours.tensor_type.name, theirs.tensor_type.name) == ("IQ4_NL", "Q4_0")


def compare(ours, theirs):
    """@returns how many tensors there are, and what differs, a sentence a tensor."""
    a, b = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    mine, other = ({t.name: t for t in r.tensors} for r in (a, b))
    assert mine.keys() == other.keys(), mine.keys() ^ other.keys()
    wrong = []
    for name, t in mine.items():
        if meant(t, other[name]):
            continue
        if t.tensor_type != other[name].tensor_type:
            wrong.append(f"{name}: {t.tensor_type.name}, llama.cpp {other[name].tensor_type.name}")
        elif not np.array_equal(t.data, other[name].data):
            wrong.append(f"{name}: {np.count_nonzero(t.data != other[name].data)} bytes differ")
    numbers = [int(r.get_field("general.file_type").contents()) for r in (a, b)]
    if numbers[0] != numbers[1]:
        wrong.append(f"general.file_type {numbers[0]}, llama.cpp {numbers[1]}")
    return len(mine), wrong


def check(build, quantize, name, model, work):
    plain, ours, theirs, matrix = (work / f for f in ("plain.gguf", "ours.gguf", "theirs.gguf", "matrix.gguf"))
    run(build / "bin/gguf_mistral", "--model", model, "--type", "F32", "--output", plain, "--overwrite")
    write_importance(matrix, plain)
    failed = 0
    for kind in TYPES:
        for importance in (False, True):
            given = ["--imatrix", matrix] if importance else []
            run(build / "bin/gguf_mistral", "--model", model, "--type", kind, "--output", ours, "--overwrite", *given)
            run(quantize, *given, plain, theirs, kind, "2")
            tensors, wrong = compare(ours, theirs)
            print(f"{name} {kind}{' with importance' if importance else ''}: {tensors - len(wrong)} of {tensors} tensors equal", flush=True)
            for sentence in wrong[:4]:
                print("   ", sentence)
            failed += bool(wrong)
    return failed


def main():
    build, quantize = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        failed += check(build, quantize, "model", Path(sys.argv[3]) if len(sys.argv) > 3 else EMBEDDED, work)
        for name, shape in {"32 layers, shared heads": (32, 8, 2, 256, 512, False), "32 layers": (32, 4, 4, 256, 768, False),
                            "80 layers, shared heads": (80, 8, 2, 256, 512, False), "odd rows": (8, 4, 2, 320, 608, True)}.items():
            random_model(work / name, *shape)
            failed += check(build, quantize, name, work / name, work)
            shutil.rmtree(work / name)
    print("all equal" if failed == 0 else f"{failed} files differ")
    sys.exit(failed > 0)


main()
