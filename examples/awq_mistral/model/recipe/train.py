#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains tiny-mistral from scratch: AdamW in bf16 autocast on a CPU, sequences drawn at random from the training text,
and writes config.json and model.safetensors. Modules carry the names that transformers gives a MistralForCausalLM."""
import argparse
import json
import math
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import nn

BOS, EOS = 1, 2


@dataclass
class Shape:
    hidden: int = 256
    intermediate: int = 768
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 2048
    context: int = 512
    eps: float = 1e-5
    theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class RMSNorm(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.eps = shape.eps
        self.weight = nn.Parameter(torch.ones(shape.hidden))

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = linear(shape.hidden, width)
        self.k_proj = linear(shape.hidden, kv_width)
        self.v_proj = linear(shape.hidden, kv_width)
        self.o_proj = linear(width, shape.hidden)
        frequency = shape.theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angle = torch.outer(torch.arange(shape.context).float(), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        future = torch.ones(shape.context, shape.context, dtype=torch.bool).triu(1)
        self.register_buffer("future", future, persistent=False)

    def rotate(self, x):
        """Rotary position embedding of (batch, heads, tokens, head_dim), halves paired as in Mistral."""
        tokens, half = x.shape[-2], x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * self.cos[:tokens] + turned * self.sin[:tokens]

    def forward(self, x):
        batch, tokens, _ = x.shape
        split = lambda y: y.view(batch, tokens, -1, self.shape.head_dim).transpose(1, 2)
        q = self.rotate(split(self.q_proj(x)).float())
        k = self.rotate(split(self.k_proj(x)).float())
        v = split(self.v_proj(x))
        repeats = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = torch.matmul(q.to(v.dtype), k.to(v.dtype).transpose(-1, -2)).float() / math.sqrt(self.shape.head_dim)
        weights = scores.masked_fill(self.future[:tokens, :tokens], -1e9).softmax(-1)
        return self.o_proj(torch.matmul(weights.to(v.dtype), v).transpose(1, 2).reshape(batch, tokens, -1))


class MLP(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = linear(shape.hidden, shape.intermediate)
        self.up_proj = linear(shape.hidden, shape.intermediate)
        self.down_proj = linear(shape.intermediate, shape.hidden)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape)
        self.post_attention_layernorm = RMSNorm(shape)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape)


class TinyMistral(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.model = Body(shape)
        self.lm_head = linear(shape.hidden, shape.vocabulary)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, 0, 0.02 / math.sqrt(2 * shape.layers) if residual else 0.02)

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x)
        return self.lm_head(self.model.norm(x))


def encode(tokenizer, documents: list[str]) -> np.ndarray:
    """The documents' ids one after the other, each between BOS and EOS."""
    ids = [i for document in documents for i in (BOS, *tokenizer.encode(document), EOS)]
    return np.array(ids, dtype=np.int32)


@torch.no_grad()
def perplexity(model, ids: np.ndarray, window: int, most_windows: int) -> float:
    """Over windows without overlap."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, min(len(ids) - 1, most_windows * window), window):
        piece = torch.from_numpy(ids[start : start + window + 1].astype(np.int64))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(piece[None, :-1])[0].float()
        total += F.cross_entropy(logits, piece[1:], reduction="sum").item()
        count += len(piece) - 1
    model.train()
    return math.exp(total / count)


def save(model, shape: Shape, folder: Path) -> None:
    """Weights in bf16, one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, weight in sorted(model.state_dict().items()):
        blob = weight.detach().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    config = dict(
        architectures=["MistralForCausalLM"], model_type="mistral", vocab_size=shape.vocabulary,
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        hidden_act="silu", max_position_embeddings=shape.context, initializer_range=0.02, rms_norm_eps=shape.eps,
        use_cache=True, bos_token_id=BOS, eos_token_id=EOS, tie_word_embeddings=False, rope_theta=shape.theta,
        sliding_window=None, attention_dropout=0.0, torch_dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def learning_rate(peak: float, step: int, steps: int) -> float:
    """100 steps of warm-up, the peak for 30 % of the way, then a cosine down to 5 % of it."""
    share = step / steps
    decay = 1.0 if share < 0.3 else 0.5 * (1 + math.cos(math.pi * (share - 0.3) / 0.7))
    return peak * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * decay)


def train(model, shape: Shape, training: np.ndarray, held_out: dict[str, np.ndarray], options) -> None:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95))
    draw, started = np.random.default_rng(7), time.time()
    for step in range(options.steps):
        rate = learning_rate(options.learning_rate, step, options.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = draw.integers(0, len(training) - shape.context - 1, size=options.batch)
        windows = np.stack([training[start : start + shape.context + 1] for start in starts])
        ids = torch.from_numpy(windows.astype(np.int64))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().reshape(-1, shape.vocabulary), ids[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.time() - started:.0f} s", flush=True)
        if step % 250 == 249:
            print({name: round(perplexity(model, ids_, shape.context, 40), 2) for name, ids_ in held_out.items()})
            save(model, shape, options.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("corpus"), help="what corpus.py and tokenizer.py wrote")
    parser.add_argument("--output", type=Path, default=Path("tiny-mistral"))
    parser.add_argument("--steps", type=int, default=3100)
    parser.add_argument("--batch", type=int, default=16, help="sequences a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(1234)
    shape = Shape()
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(options.corpus / "tokenizer.model"))
    training = encode(tokenizer, json.loads((options.corpus / "training.json").read_text()))
    held_out = {name: encode(tokenizer, [(options.corpus / f"heldout-{name}.txt").read_text()])
                for name in ("speeches", "persuasion")}
    print(f"{len(training)} training tokens")

    model = TinyMistral(shape)
    train(model, shape, training, held_out, options)
    save(model, shape, options.output)
    print({name: round(perplexity(model, ids, shape.context, 1000), 3) for name, ids in held_out.items()})


if __name__ == "__main__":
    main()
