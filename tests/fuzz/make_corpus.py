# SPDX-License-Identifier: Apache-2.0
"""Makes tests/fuzz/corpus: small files of every kind that a target reads, what it accepts and what is nearly that.
Needs the standard library only. Run from the repository's root: python3 tests/fuzz/make_corpus.py"""
import json
import struct
from pathlib import Path

CORPUS = Path("tests/fuzz/corpus")


def put(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def dump(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# ---- JSON and config.json

CONFIG = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32, "hidden_size": 8,
          "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
          "head_dim": 2, "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
          "rope_theta": 10000.0, "sliding_window": None, "tie_word_embeddings": False, "bos_token_id": 1,
          "eos_token_id": [2, 3], "torch_dtype": "bfloat16"}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 8,
         "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "dtype": "float16",
         "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 1.0}}
GROUP = {"format": "pack-quantized", "input_activations": None, "output_activations": None, "targets": ["Linear"],
         "weights": {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32,
                     "dynamic": False}}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": GROUP},
              "ignore": ["lm_head", "re:.*layers\\.0\\..*"]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv", "zero_point": True,
       "modules_to_not_convert": ["q_proj"]}

for name, text in {"values": '{"a":[1,-2,3.5e-7,true,false,null,"\\u00e9\\n\\ud83d\\ude00",{}],"b":{"c":{"d":[[]]}}}',
                   "number": "18446744073709551616", "string": '"a"', "large": '{"a":1e999}', "cut": '{"a":[1,2',
                   "negative": '{"a":-9223372036854775808}', "latin": b'{"a":"caf\xe9"}', "empty": "",
                   "twice": '{"a":1,"b":{"a":2},"a":3}', "deep": "[" * 600 + "]" * 600}.items():
    put("json", name, text)
put("config", "mistral", dump(CONFIG))
put("config", "llama", dump(LLAMA))
put("config", "packed", dump({**CONFIG, "quantization_config": COMPRESSED}))
put("config", "strings", dump({**CONFIG, "hidden_size": "8"}))
put("quantization", "compressed", dump(COMPRESSED))
put("quantization", "two_groups", dump({**COMPRESSED, "config_groups": {
    "a": {**GROUP, "targets": ["re:.*mlp.*"]},
    "b": {"targets": ["model.layers.0.self_attn.q_proj"], "weights": {"num_bits": 8, "type": "int"}}}}))
put("quantization", "awq", dump(AWQ))

# ---- safetensors


def safetensors(header, data):
    text = header if isinstance(header, bytes) else dump(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


put("safetensors", "two", safetensors({"__metadata__": {"format": "pt"}, "a": entry("F32", [2, 2], 0, 16),
                                       "b": entry("BF16", [3], 16, 22)}, bytes(range(22))))
put("safetensors", "scalar_and_empty", safetensors({"s": entry("F16", [], 0, 2), "e": entry("I64", [0, 7], 2, 2)}, b"ab"))
put("safetensors", "overflow", safetensors({"a": entry("F32", [2**62, 2**62], 0, 4)}, b"abcd"))
put("safetensors", "overlap", safetensors({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, b"abcdef"))
put("safetensors", "packed_bits", safetensors({"a": entry("F4", [4], 0, 2), "b": entry("F6_E2M3", [4], 2, 5)}, b"abcde"))
put("safetensors", "cut", safetensors({"a": entry("U8", [4], 0, 4)}, b"abcd")[:-6])
put("safetensors", "claims_much", struct.pack("<Q", 2**63) + b"{}")



def packed(description, tensors):
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = entry(dtype, shape, len(data), len(data) + len(content))
        data += content
    return dump(description).encode() + b"\0" + safetensors(header, data)


put("packed", "compressed", packed(COMPRESSED, {
    "l.weight_packed": ("I32", [8, 4], bytes(range(128))), "l.weight_scale": ("F32", [8, 1], struct.pack("<8f", *range(8))),
    "l.weight_zero_point": ("I32", [1, 1], b"\x12\x34\x56\x78"), "l.weight_shape": ("I64", [2], struct.pack("<2q", 8, 32))}))
put("packed", "channel", packed(
    {**COMPRESSED, "config_groups": {"g": {"targets": ["Linear"], "weights": {
        "num_bits": 3, "type": "int", "symmetric": True, "strategy": "channel"}}}},
    {"l.weight_packed": ("I32", [3, 4], bytes(range(48))), "l.weight_scale": ("BF16", [3, 1], b"\x80\x3f" * 3),
     "l.weight_shape": ("I64", [2], struct.pack("<2q", 3, 40))}))
IN_LAYERS = "model.layers.l"
AWQ_PACKED = {**AWQ, "group_size": 32, "modules_to_not_convert": None}
put("packed", "gemm", packed({**AWQ_PACKED, "version": "gemm"}, {
    IN_LAYERS + ".qweight": ("I32", [32, 1], bytes(range(128))), IN_LAYERS + ".qzeros": ("I32", [1, 1], b"\x12\x34\x56\x78"),
    IN_LAYERS + ".scales": ("F16", [1, 8], b"\0\x3c" * 8)}))
put("packed", "gemv_fast", packed({**AWQ_PACKED, "version": "gemv_fast", "group_size": 128}, {
    IN_LAYERS + ".qweight": ("I16", [16, 128], bytes(range(256)) * 16), IN_LAYERS + ".qzeros": ("F16", [8, 64], b"\0\xc0" * 512),
    IN_LAYERS + ".scales": ("F16", [8, 64], b"\0\x3c" * 512)}))
put("packed", "marlin", packed({**AWQ_PACKED, "version": "marlin", "zero_point": False, "group_size": 128}, {
    IN_LAYERS + ".qweight": ("I32", [8, 128], bytes(range(256)) * 16),
    IN_LAYERS + ".scales": ("F16", [1, 64], b"\0\x3c" * 64)}))
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": False, "desc_act": True, "lm_head": False,
        "checkpoint_format": "gptq", "pack_dtype": "int32",
        "dynamic": {"-:.*down_proj": {}, "+:.*\\.up_proj$": {"bits": 8, "group_size": -1, "sym": True, "desc_act": False}}}
put("packed", "gptq", packed(GPTQ, {
    IN_LAYERS + ".qweight": ("I32", [4, 8], bytes(range(128))), IN_LAYERS + ".qzeros": ("I32", [2, 1], bytes(range(8))),
    IN_LAYERS + ".scales": ("F16", [2, 8], b"\0\x3c" * 16),
    IN_LAYERS + ".g_idx": ("I32", [32], struct.pack("<32i", *(j % 2 for j in range(32))))}))
put("packed", "gptq_v2", packed({**GPTQ, "checkpoint_format": "gptq_v2", "bits": 3, "group_size": 64, "dynamic": None}, {
    IN_LAYERS + ".qweight": ("I32", [12, 64], bytes(range(256)) * 12), IN_LAYERS + ".qzeros": ("I32", [2, 6], bytes(range(48))),
    IN_LAYERS + ".scales": ("F16", [2, 64], b"\0\x3c" * 128),
    IN_LAYERS + ".g_idx": ("I32", [128], struct.pack("<128i", *(j // 100 for j in range(128))))}))
put("quantization", "gptq", dump(GPTQ))
put("packed", "dense", packed({**COMPRESSED, "ignore": ["l"]}, {"l.weight": ("BF16", [8, 32], bytes(512))}))

put("index", "two_shards", dump({"metadata": {"total_size": 16},
                                 "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
put("index", "elsewhere", dump({"weight_map": {"x": "../a.safetensors"}}))
put("index", "folder", dump({"weight_map": {"x": "folder", "y": "broken.safetensors", "z": "missing.safetensors"}}))

# ---- tokenizers


def added(token, number, **more):
    return {"id": number, "content": token, "special": True, "normalized": False, "single_word": False, "lstrip": False,
            "rstrip": False, **more}


BYTES = [f"<0x{byte:02X}>" for byte in (0x0A, 0xC3, 0xA9)]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "c", "ab", "▁a", "abc", "▁ab"]
FALLBACK = {"added_tokens": [added("<unk>", 0), added("<s>", 1), added("</s>", 2), added("[INST]", 14, lstrip=True),
                             added("foo", 15, special=False, normalized=True, single_word=True, rstrip=True)],
            "normalizer": None,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
            "post_processor": {"type": "TemplateProcessing",
                               "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
                               "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                      "vocab": {token: i for i, token in enumerate(TOKENS)},
                      "merges": ["a b", "▁ a", ["ab", "c"], "▁ ab"]}}
LEVEL = {"added_tokens": [added("<s>", 6), added("[INST]", 7)], "normalizer": None,
         "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
             {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s+(?!\\S)|\\s+|[^\\s]"}, "behavior": "Isolated"},
             {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]},
         "post_processor": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"},
         "model": {"type": "BPE", "ignore_merges": True,
                   "vocab": {"a": 0, "b": 1, "Ġ": 2, "Ċ": 3, "ab": 4, "Ã": 5}, "merges": [["a", "b"]]}}
OLD = {"normalizer": {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "decoder": {"type": "Metaspace", "replacement": "▁"},
    "model": {"type": "BPE", "vocab": {"▁": 0, "a": 1, "▁a": 2}, "merges": ["▁ a"]}}
for name, (file, text) in {"fallback": (FALLBACK, "ab abc é [INST] foo\n"), "byte_level": (LEVEL, " ab  b\n\né<s>"),
                           "old": (OLD, "a a")}.items():
    put("tokenizer_json", name, dump(file) + "\0" + text)


def field(number, wire, payload):
    tag = number << 3 | wire
    return (bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])) + payload


def text_field(number, text):
    raw = text if isinstance(text, bytes) else text.encode()
    assert len(raw) < 128
    return field(number, 2, bytes([len(raw)]) + raw)


def piece(text, score, kind):
    return text_field(1, text_field(1, text) + field(2, 5, struct.pack("<f", score)) + field(3, 0, bytes([kind])))


def sentencepiece(kind, dummy_prefix, every_byte):
    """A ModelProto of model_type `kind` (1 unigram, 2 BPE)."""
    normal, unknown, control, byte = 1, 2, 3, 6
    out = piece("<unk>", 0, unknown) + b"".join(piece(t, 0, control) for t in ("<s>", "</s>", "[INST]"))
    if every_byte:
        out += b"".join(piece(f"<0x{i:02X}>", 0, byte) for i in range(256))
    for rank, text in enumerate(("▁a", "ab", "▁", "a", "b", "c", "t", "h", "e")):
        out += piece(text, -rank, normal)
    trainer = field(3, 0, bytes([kind])) + field(35, 0, bytes([every_byte]))  # 35: byte_fallback
    normalizer = text_field(1, "identity") + field(3, 0, bytes([dummy_prefix]))
    return out + text_field(2, trainer) + text_field(3, normalizer)


put("tokenizer_model", "bpe", sentencepiece(2, 1, True))
put("tokenizer_model", "bpe_plain", sentencepiece(2, 0, False))
put("tokenizer_model", "unigram", sentencepiece(1, 1, False))

put("text", "words", "The state of the Union is strong. [INST] I'm 1234 [/INST] don't</s>\r\n\t x")
put("text", "scripts", "naïve café 你好，世界。 مرحبا ١٢٣ 👍🏽 e\u0301 \u200d\u00a0\u3000\ufeff ▁▁")
put("text", "broken", b"a\xff\xe2\x82\xed\xa0\x80\xf4\x91\x92\x93 \x00\xc0\xaf")
put("text", "run", "a" * 300 + " " * 40 + "\n" * 20)

put("calibration", "kinds", "\n".join(map(dump, (
    {"text": "The state of the Union"}, {"messages": [{"role": "user", "content": "hi"},
                                                      {"role": "assistant", "content": "ho"}]},
    {"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Go."}))))
put("calibration", "blank_lines", '\ufeff\n  \r\n{"text":""}\n{"text":"\\u0000 [INST]"}')
put("calibration", "broken", b'{"text":"a"}\n{"text":\n{"text":"\xff"}\n{"messages":[{"role":7}]}')

put("evaluation", "kinds", "\n".join(map(dump, (
    {"text": "The state of the Union"}, {"prompt": "Two and two?", "answer": "four"},
    {"prompt": "Which?\n", "answer": ["This", "the \u00e9"]}))))
put("evaluation", "wrong", '{"prompt":"a","answer":"?!"}\n{"text":"a","prompt":"b"}')

# ---- recipes

put("recipe", "pair", """default_stage:
  default_modifiers:
    AWQModifier:
      duo_scaling: both
      n_grid: 20
      offload_device: !!python/object/apply:torch.device [cpu]
    QuantizationModifier: &q
      targets: [Linear]
      scheme: W4A16_ASYM
      ignore: [lm_head, 're:.*gate$']
""")
put("recipe", "groups", """quant_stage:
  quant_modifiers:
    AWQModifier:
      mappings:
      - smooth_layer: re:.*input_layernorm$
        balance_layers: ['re:.*q_proj$', 're:.*k_proj$', 're:.*v_proj$']
      ignore: [lm_head]
      config_groups:
        group_0:
          targets: ["re:.*mlp.*"]
          weights: {num_bits: 4, type: int, symmetric: false, strategy: group, group_size: 32, dynamic: false}
          input_activations: null
        group_1: {targets: [Linear], weights: {num_bits: 8, symmetric: true, strategy: channel}}
""")
put("recipe", "aliases", "a: &a [1, 2]\nb: &b [*a, *a]\nc: [*b, *b]\n")
put("recipe", "nested", "[" * 70)

# ---- templates and patterns

put("chat_template", "mistral", """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}\
{% elif m.role == 'assistant' %}{{ ' ' ~ m.content | trim ~ eos_token }}{% else %}{{ raise_exception('no ' + m.role) }}\
{% endif %}{% endfor %}""")
put("chat_template", "words", """{%- set ns = namespace(i=0, t='') -%}{# x #}
{%- macro f(a, b=2) %}{{ a[1:-1] }}{{ b * 3 // 2 % 5 }}{% endmacro -%}
{% for x in messages[1:] if x.role is defined and not (x is none or loop) %}{% set ns.i = ns.i + loop.index0 %}
  {{ f(x.content | upper, b=-ns.i) if x.content in 'abc' else [1, 'b', {'c': (1)}][1] }}{% else %}{{ range(3) | join(',') }}{% endfor %}
{{ 'a\\n\\x41\\u00e9'.replace('a', 'b').strip().startswith('b') }}{{ strftime_now('%Y') | length }}""")
put("chat_template", "select", "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages[0].items() | first | last }}")
put("regex", "tekken", r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    + "\0The 2024 état, don't  \n x")
put("regex", "gpt2", r"'s|'t|(?i:'re)| ?\p{L}+|\s+(?!\S)|\s+" + "\0we're  fine 's")
put("regex", "backtracks", "(a+)+$\0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab")
put("regex", "looks_behind", "(?<=a)b|\\Kc|(?=d)\0abcd")

# ---- GGUF


def gguf_text(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value):
    """The type's number and the value's bytes."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, gguf_text(value)
    kind = 5 if isinstance(value[0], int) else gguf_value(value[0])[0]
    items = b"".join(struct.pack("<i", v) if kind == 5 else gguf_value(v)[1] for v in value)
    return 9, struct.pack("<IQ", kind, len(value)) + items


def gguf(keys, tensors, alignment=32):
    """tensors: name, dimensions (columns first), type, bytes."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, value in keys.items():
        kind, data = gguf_value(value)
        out += gguf_text(key) + struct.pack("<I", kind) + data
    data = b""
    for name, dims, kind, content in tensors:
        out += gguf_text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
        data += content + bytes(-len(content) % alignment)
    return out + bytes(-len(out) % alignment) + data


SPM = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + ["\u2581", "a", "t", "\u2581t", "at"]
SPM_TYPES = [2, 3, 3] + [6] * 256 + [1] * 5
MODEL_KEYS = {"general.architecture": "llama", "llama.context_length": 64, "llama.embedding_length": 32,
              "llama.block_count": 1, "llama.feed_forward_length": 32, "llama.attention.head_count": 2,
              "llama.attention.head_count_kv": 1, "llama.attention.key_length": 16,
              "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0}
SPM_KEYS = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": SPM,
            "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(5)], "tokenizer.ggml.token_type": SPM_TYPES,
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_space_prefix": True,
            "tokenizer.chat_template": "{{ bos_token }}"}
BPE_TOKENS = ["<s>", "</s>", "T", "h", "e", "Th", "\u0120"]
BPE_KEYS = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken", "tokenizer.ggml.tokens": BPE_TOKENS,
            "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1], "tokenizer.ggml.merges": ["T h"],
            "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1}
WEIGHTS = [("blk.0.attn_q.weight", [32, 32], 8, bytes(range(34)) * 32), ("blk.0.attn_k.weight", [32, 16], 2, bytes(288)),
           ("blk.0.attn_norm.weight", [32], 0, struct.pack("<32f", *range(32)))]
put("gguf", "sentencepiece", gguf({**MODEL_KEYS, **SPM_KEYS},
                                  [("token_embd.weight", [32, len(SPM)], 1, bytes(64 * len(SPM)))] + WEIGHTS))
put("gguf", "byte_level", gguf({**MODEL_KEYS, **BPE_KEYS}, [("token_embd.weight", [32, 7], 30, bytes(64 * 7))] + WEIGHTS))
put("gguf", "blocks", gguf({}, [(f"t{kind}", [256, 1], kind, bytes(range(size % 256)) + bytes(size - size % 256))
                                for kind, size in ((3, 160), (6, 176), (7, 192), (10, 84), (11, 110), (12, 144), (13, 176),
                                                   (14, 210), (20, 144), (23, 136))]))
put("gguf", "importance", gguf({"general.type": "imatrix"}, [
    ("blk.0.attn_q.weight.in_sum2", [4, 1], 0, struct.pack("<4f", 1, 2, 3, 4)),
    ("blk.0.attn_q.weight.counts", [1, 1], 0, struct.pack("<f", 2))]))
put("gguf", "aligned", gguf({"general.alignment": 64}, [("a", [1], 0, bytes(4)), ("b", [1], 0, bytes(4))], 64))
put("gguf", "empty", gguf({}, []))
