# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of small random models, and of the embedded model's first windows, as transformers computes them.

    python3 make.py          # where transformers and torch are; run in the repository, writes golden.json beside itself

The weights follow from a seed by the rule of tests/support/model.hpp, so no weights are stored. Each model runs in
float64, as far as transformers keeps to it (norms and rotary tables stay float32), and in float32; the largest
difference between the two is stored as the yardstick of what float32 can do.
"""

import json
import os

import numpy
import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
EMBEDDED = os.path.join(HERE, "../../../examples/awq_mistral")
MASK = (1 << 64) - 1

BASE = dict(hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2, head_dim=8, vocabulary=40, sliding_window=0,
            tied=False, llama=False, rope_theta=10000.0, scale=0.5, seed=1, tokens=16)
MODELS = {
    "grouped": {},
    "multi_head": {"kv_heads": 4, "seed": 2},
    "odd_shapes": {"hidden": 20, "intermediate": 33, "heads": 3, "kv_heads": 1, "head_dim": 14, "seed": 3},
    "sliding_window": {"sliding_window": 5, "seed": 4},
    "tied": {"tied": True, "seed": 5, "rope_theta": 1000000.0},
    "llama": {"llama": True, "seed": 6},
}


def mixed(z):
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31


def values(seed, name, shape, middle, scale):
    state = seed
    for letter in name.encode():
        state = mixed(state ^ letter)
    count = int(numpy.prod(shape))
    u = numpy.array([mixed((state + i) & MASK) >> 40 for i in range(count)], dtype=numpy.float32)
    u = u * numpy.float32(2.0**-23) - numpy.float32(1)
    return torch.from_numpy(numpy.float32(middle) + numpy.float32(scale) * u).reshape(shape)


def make(m):
    kind = transformers.LlamaConfig if m["llama"] else transformers.MistralConfig
    more = {} if m["llama"] else {"sliding_window": m["sliding_window"] or None}
    config = kind(vocab_size=m["vocabulary"], hidden_size=m["hidden"], intermediate_size=m["intermediate"],
                  num_hidden_layers=m["layers"], num_attention_heads=m["heads"], num_key_value_heads=m["kv_heads"],
                  head_dim=m["head_dim"], max_position_embeddings=512, rms_norm_eps=1e-5,
                  tie_word_embeddings=m["tied"], rope_theta=m["rope_theta"],
                  rope_parameters={"rope_type": "default", "rope_theta": m["rope_theta"]}, **more)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        middle, scale = (1.0, 0.25) if "norm" in name else (0.0, 1.0 if "embed" in name else m["scale"])
        parameter.data = values(m["seed"], name, tuple(parameter.shape), middle, scale)
    model.tie_weights()
    return model


@torch.no_grad()
def log_probabilities(model, ids):
    return torch.log_softmax(model(ids[None]).logits[0], dim=-1)


@torch.no_grad()
def window_nll(model, ids, window, windows):
    out = []
    for i in range(windows):
        x = ids[i * window:i * window + window + 1]
        logits = model(x[None, :-1]).logits[0].double()
        out.append(torch.nn.functional.cross_entropy(logits, x[1:], reduction="sum").item())
    return out


def main():
    golden = {"transformers": transformers.__version__, "torch": torch.__version__, "models": {}, "windows": {}}
    for name, changes in MODELS.items():
        m = {**BASE, **changes}
        model = make(m)
        ids = torch.tensor([mixed(m["seed"] * 1000 + i) % m["vocabulary"] for i in range(m["tokens"])])
        single = log_probabilities(model.float(), ids)
        double = log_probabilities(model.double(), ids)
        golden["models"][name] = {**m, "ids": ids.tolist(),
                                  "float32_deviation": (single.double() - double).abs().max().item(),
                                  "log_probabilities": [[round(x, 6) for x in row] for row in double.tolist()]}
        print(name, golden["models"][name]["float32_deviation"], double.min().item(), double.max().item())

    path = os.path.join(EMBEDDED, "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for text in ("heldout-state-of-the-union-2013-2021.txt", "heldout-persuasion.txt"):
        with open(os.path.join(EMBEDDED, "text", text), encoding="utf-8") as file:
            ids = [1] + tokenizer(file.read(), add_special_tokens=False, verbose=False).input_ids
        golden["windows"][text] = {"window": 512, "nll": window_nll(model, torch.tensor(ids), 512, 4)}
        print(text, numpy.exp(sum(golden["windows"][text]["nll"]) / 2048))
    with open(os.path.join(HERE, "golden.json"), "w") as file:
        json.dump(golden, file)
        file.write("\n")


if __name__ == "__main__":
    main()
