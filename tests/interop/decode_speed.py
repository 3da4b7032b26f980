# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of greedy decoding, one sequence: generate from bf16 and from 4-bit weights beside llama.cpp from
bf16 and from Q4_0, on a checkpoint of random weights in Mistral-7B's shape cut to a few layers and to the embedded
model's vocabulary.

    python3 decode_speed.py BUILD WORK [LAYERS] [THREADS] [ROUNDS]

BUILD holds bin/awq_mistral and bin/generate; WORK receives the checkpoints (some 4 bytes a weight) and keeps them for the next
run. The four take turns, so that all see the same machine; each reports its fastest round, since other work on the machine only
ever slows one down. llama.cpp comes as the package xllamacpp, its files are written with gguf.
"""

import json
import os
import shutil
import subprocess
import sys

import gguf
import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
EMBEDDED = os.path.join(HERE, "..", "..", "examples", "awq_mistral", "model")
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, CONTEXT = 4096, 14336, 32, 8, 128, 2048, 4096
LINEARS = {"self_attn.q_proj": ("attn_q", HIDDEN, HIDDEN), "self_attn.k_proj": ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
           "self_attn.v_proj": ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN), "self_attn.o_proj": ("attn_output", HIDDEN, HIDDEN),
           "mlp.gate_proj": ("ffn_gate", INTERMEDIATE, HIDDEN), "mlp.up_proj": ("ffn_up", INTERMEDIATE, HIDDEN),
           "mlp.down_proj": ("ffn_down", HIDDEN, INTERMEDIATE)}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
TOKENS, PROMPT = 64, "The state of the union is"


def tensors(layers):
    """(name in safetensors, name in GGUF, values) of all weights."""
    torch.manual_seed(0)
    normal = lambda *shape: (torch.randn(*shape) * 0.02).bfloat16()
    yield "model.embed_tokens.weight", "token_embd.weight", normal(VOCABULARY, HIDDEN)
    for i in range(layers):
        for name, (short, n, k) in LINEARS.items():
            yield f"model.layers.{i}.{name}.weight", f"blk.{i}.{short}.weight", normal(n, k)
        for name, short in NORMS.items():
            yield f"model.layers.{i}.{name}.weight", f"blk.{i}.{short}.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)
    yield "model.norm.weight", "output_norm.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)
    yield "lm_head.weight", "output.weight", normal(VOCABULARY, HIDDEN)


def write_checkpoint(directory, layers):
    os.makedirs(directory)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(os.path.join(EMBEDDED, name), directory)
    with open(os.path.join(EMBEDDED, "config.json")) as file:
        config = json.load(file)
    config.update(hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=layers, num_attention_heads=HEADS,
                  num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, vocab_size=VOCABULARY, sliding_window=None,
                  max_position_embeddings=CONTEXT, tie_word_embeddings=False)
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(dict(config, torch_dtype="bfloat16"), file, indent=1)
    save_file({name: value for name, _, value in tensors(layers)}, os.path.join(directory, "model.safetensors"),
              metadata={"format": "pt"})


def write_gguf(path, layers, kind):
    out = gguf.GGUFWriter(path + ".partial", "llama")
    out.add_block_count(layers)
    out.add_context_length(CONTEXT)
    out.add_embedding_length(HIDDEN)
    out.add_feed_forward_length(INTERMEDIATE)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_rope_dimension_count(HEAD_DIM)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(VOCABULARY)
    pieces = sentencepiece.SentencePieceProcessor(os.path.join(EMBEDDED, "tokenizer.model"))
    types = [gguf.TokenType.BYTE if pieces.is_byte(i) else gguf.TokenType.CONTROL if pieces.is_control(i) else
             gguf.TokenType.UNKNOWN if pieces.is_unknown(i) else gguf.TokenType.NORMAL for i in range(VOCABULARY)]
    out.add_tokenizer_model("llama")
    out.add_token_list([pieces.id_to_piece(i).encode() for i in range(VOCABULARY)])
    out.add_token_scores([pieces.get_score(i) for i in range(VOCABULARY)])
    out.add_token_types(types)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    for _, name, value in tensors(layers):
        values = value.float().numpy()
        if values.ndim == 1:
            out.add_tensor(name, values)
            continue
        packed = kind if name.startswith("blk.") else gguf.GGMLQuantizationType.BF16
        out.add_tensor(name, gguf.quants.quantize(values, packed), raw_dtype=packed)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    os.rename(path + ".partial", path)


def llama(path, threads):
    """In a process of its own: prints tokens per second, the first call warming up."""
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 512
    params.n_parallel = 1
    params.warmup = True
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    rates = []
    for _ in range(2):
        result = server.handle_completions({"prompt": PROMPT, "max_tokens": TOKENS, "n_predict": TOKENS, "temperature": 0,
                                            "ignore_eos": True, "cache_prompt": False})
        result = json.loads(result) if isinstance(result, (str, bytes)) else result
        rates.append(result["timings"]["predicted_per_second"])
    print("RATE", max(rates))


def rate_of(command):
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(ran.stderr[-2000:])
    if "RATE " in ran.stdout:
        return float(ran.stdout.split("RATE ")[1].split()[0])
    return json.loads(ran.stdout)["tokens_per_second"]


def main():
    if sys.argv[1] == "--llama":
        return llama(sys.argv[2], int(sys.argv[3]))
    build, work = sys.argv[1:3]
    layers, threads, rounds = (int(sys.argv[i]) if len(sys.argv) > i else given for i, given in ((3, 4), (4, 2), (5, 5)))
    path = lambda name: os.path.join(work, f"{name}-{layers}")
    if not os.path.exists(path("bf16")):
        write_checkpoint(path("bf16"), layers)
    if not os.path.exists(path("w4")):
        subprocess.run([os.path.join(build, "bin/awq_mistral"), "--model", path("bf16"), "--output", path("w4"), "--method",
                        "rtn"], check=True, capture_output=True)
    kinds = {"bf16.gguf": gguf.GGMLQuantizationType.BF16, "q4_0.gguf": gguf.GGMLQuantizationType.Q4_0}
    for name, kind in kinds.items():
        if not os.path.exists(path(name)):
            write_gguf(path(name), layers, kind)
    generate = lambda name: [os.path.join(build, "bin/generate"), "--model", path(name), "--prompt", PROMPT, "--json",
                             "--max-new-tokens", str(TOKENS), "--threads", str(threads)]
    peer = lambda name: [sys.executable, os.path.abspath(__file__), "--llama", path(name), str(threads)]
    runs = {"generate, bf16": generate("bf16"), "generate, 4 bits": generate("w4"), "llama.cpp, bf16": peer("bf16.gguf"),
            "llama.cpp, Q4_0": peer("q4_0.gguf")}
    rates = {name: [] for name in runs}
    for _ in range(rounds):
        for name, command in runs.items():
            rates[name].append(rate_of(command))
            print(f"{name}: {rates[name][-1]:.2f}", file=sys.stderr, flush=True)
    for name, found in rates.items():
        print(f"{name:18} {max(found):8.2f} tokens/s   (median {np.median(found):.2f})")
    print("RESULT", json.dumps({name: max(found) for name, found in rates.items()}))


if __name__ == "__main__":
    main()
