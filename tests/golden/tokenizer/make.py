# SPDX-License-Identifier: Apache-2.0
"""Makes the golden files of tests/mistral/{tokenizer,chat,calibration}.cpp with tokenizers, transformers, Jinja2 and
llm-compressor. Run from the repository's root: python3 tests/golden/tokenizer/make.py
Texts under ../shared/data enter as counts and hashes only."""
import copy, datetime, json, os, random, sys
from importlib.metadata import version
from pathlib import Path

import transformers.utils.chat_template_utils as chat_utils
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

HERE = Path(__file__).parent
MODEL = Path("examples/awq_mistral/model")
SHARED = Path("../shared/data")
VERSIONS = {p: version(p) for p in ("tokenizers", "transformers", "jinja2", "llmcompressor")}
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
          r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CONVERTED = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
             r"\s*[\r\n]+|\s+(?!\S)|\s+")


def fnv(data: bytes) -> str:
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 % 2**64
    return f"{h:016x}"


def ids_hash(ids) -> str:
    return fnv(b"".join(int(i).to_bytes(4, "little") for i in ids))


def write(name, value):
    text = json.dumps({"made with": VERSIONS, **value}, ensure_ascii=True, separators=(",", ":"))
    lines = text.replace('],"', '],\n"').replace('},{"', '},\n{"')
    assert json.loads(lines) == json.loads(text)
    (HERE / name).write_text(lines + "\n")


def strings():
    fixed = [
        "", " ", "  ", "   ", "\n", "\t", "\r\n", "Hello world", " Hello world", "Hello  world  ", "trail   ",
        "a\tb\tc", "line\n\nline\r\nx\n \n  \n", "h\u00e9llo na\u00efve caf\u00e9", "e\u0301 n\u0303 \u0301",
        "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4",
        "\u0645\u0631\u062d\u0628\u0627 \u0661\u0662\u0663", "\u05e9\u05dc\u05d5\u05dd",
        "\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
        "\u200d\u200b\ufeff", "\0", "a\0b\0\0", "0123456789 12,345.67 1e-10 \u0663 \u216b \u00bd",
        "I'm you're he's we'll they'd I've DON'T It'S", "<s>", "</s>", "<s>Hello</s>",
        "[INST] hi [/INST] there</s>[INST]x[/INST]", " <s> x", "a<s>b", "<unk>", "<unk><unk> x", "<0x0A>", "\u2581",
        "\u2581\u2581 x\u2581y", "[INST", "[[INST]]", "<<s>>", "foo_bar::baz(int *x) { return x->y; } // c",
        "http://example.com/?q=1&b=%20#f", "CamelCaseHTTPServer XMLHttp",
        "\u0417\u0414\u0420\u0410\u0412\u0421\u0422\u0412\u0423\u0419 \u043c\u0438\u0440",
        "\u00a0a\u2003b\u3000c\u180ed\u0085e\u2028f", "\U0001d4b3 \U00010348 \U0010ffff \ue000", "a" * 40,
        " " * 50 + "x" + " " * 33, "\n" * 40, "....!!!???---___", "\u01c5 \u01c8 \u02b0 \u00aa", "\u017f'\u017f 'S",
        "a/b/c //\n/\n", "x \n y", "test\r\r\n\n/ /", "<s>\n\n<s> \u2581<s>", "</s></s>  </s>a",
        "foo foo. xfoo foo_ \u00e9foo", "a both  both b", "lst   lst", "rst   x", "nor m x", "anor mb", "foobar bar x"]
    r = random.Random(1)
    pools = ["abcdefghij ETAOIN  ", "\u00e1\u00ed\u00df\u00fc\u00f1 \u00c5 ", "\u4f60\u597d\u4e16 ", "\U0001f600\u200d ",
             "\n\t \r", "0123456789.,", ["<s>", "</s>", "[INST]", " ", "foo", "both"], "'sStTreve ll'"]
    mixed = ["".join(r.choice(r.choice(pools)) for _ in range(r.randint(1, 40))) for _ in range(40)]
    wild = ["".join(chr(r.choice([r.randrange(0x20, 0x250), r.randrange(0xd800), r.randrange(0xe000, 0x10d00)]))
                    for _ in range(r.randint(1, 20))) for _ in range(20)]
    return fixed + mixed + wild


def train_byte_level():
    """A small tokenizer of Tekken's kind: its split pattern, bytes, ignore_merges, special tokens first."""
    tok = Tokenizer(models.BPE(ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(TEKKEN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train(["examples/awq_mistral/text/calibration-state-of-the-union-2000-2012.txt"], trainers.BpeTrainer(
        vocab_size=1300, special_tokens=["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    path = HERE / "byte-level.json"
    path.write_text(json.dumps(json.loads(tok.to_str()), ensure_ascii=True, separators=(",", ":")) + "\n")
    return path


def added(first):
    kinds = [("foo", {"single_word": True}), ("lst", {"lstrip": True}), ("rst", {"rstrip": True}),
             ("both", {"lstrip": True, "rstrip": True}), ("foobar", {"normalized": True}), ("nor m", {"normalized": True}),
             ("\u00e9", {"single_word": True}), ("fo", {}), ("\n\n", {"rstrip": True})]
    none = {flag: False for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    return [{**none, "id": first + i, "content": c, **flags} for i, (c, flags) in enumerate(kinds)]


def variants(tiny, small):
    """JSON merge patches (RFC 7386) of the two tokenizers: every path through tokenizer.json."""
    legacy = {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}, "pre_tokenizer": None}
    more = {"added_tokens": tiny["added_tokens"] + added(len(tiny["model"]["vocab"]))}
    yield "legacy normalizer", "tiny", legacy
    yield "legacy merges", "tiny", {"model": {"merges": [" ".join(m) for m in tiny["model"]["merges"][:200]]}}
    for scheme in ("always", "first", "never"):
        for split in (True, False):
            yield f"Metaspace {scheme} {split}", "tiny", {"pre_tokenizer": {"prepend_scheme": scheme, "split": split}}
    yield "added tokens", "tiny", more
    yield "added tokens, legacy", "tiny", {**legacy, **more}
    yield "bytes missing", "tiny", {"model": {"vocab": {"<0xF0>": None, "<0xE4>": None}}}
    yield "unknowns fused", "tiny", {"model": {"byte_fallback": False}}
    yield "unknowns one by one", "tiny", {"model": {"byte_fallback": False, "fuse_unk": False}}
    yield "unknowns dropped", "tiny", {"model": {"byte_fallback": False, "unk_token": None}}
    yield "merges ignored", "tiny", {"model": {"ignore_merges": True}, "pre_tokenizer": {"split": True}}
    yield "no decoder", "tiny", {"decoder": None}
    yield "Metaspace decoder", "tiny", {"decoder": {"type": "Metaspace", "replacement": "\u2581", "decoders": None,
                                                     "prepend_scheme": "first", "split": True}}
    yield "merges not ignored", "byte-level", {"model": {"ignore_merges": False}}
    yield "GPT-2's pattern", "byte-level", {"pre_tokenizer": {"type": "ByteLevel", "pretokenizers": None,
        "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}
    sequence = copy.deepcopy(small["pre_tokenizer"]["pretokenizers"])
    sequence[0]["pattern"]["Regex"] = CONVERTED
    yield "the pattern of conversions", "byte-level", {"pre_tokenizer": {"pretokenizers": sequence}}


def merge_patch(target, patch):
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for k, v in patch.items():
        if v is None:
            out.pop(k, None)
        else:
            out[k] = merge_patch(out.get(k), v)
    return out


def make_strings():
    small_path = train_byte_level()
    base = {"tiny": json.loads((MODEL / "tokenizer.json").read_text()), "byte-level": json.loads(small_path.read_text())}
    texts, out = strings(), {}
    for name, file in base.items():
        tok = Tokenizer.from_str(json.dumps(file))
        ids = [tok.encode(s, add_special_tokens=False).ids for s in texts]
        out[name] = {"ids": ids, "text": [None if (d := tok.decode(i)) == s else d for s, i in zip(texts, ids)],
                     "special": fnv("\n".join(tok.decode(i, skip_special_tokens=False) for i in ids).encode())}
    patched = []
    for name, of, patch in variants(base["tiny"], base["byte-level"]):
        tok = Tokenizer.from_str(json.dumps(merge_patch(base[of], patch)))
        ids = [tok.encode(s, add_special_tokens=False).ids for s in texts]
        patched.append({"name": name, "of": of, "patch": patch, "count": sum(map(len, ids)),
                        "hash": ids_hash([i for one in ids for i in [*one, -1 % 2**32]]),
                        "text": fnv("\n".join(tok.decode(i) for i in ids).encode())})
    write("strings.json", {"strings": texts, "tokenizers": out})
    write("variants.json", {"variants": patched})


def make_texts():
    import lzma
    models_ = {"tiny-mistral": MODEL, "mistral-7b-instruct-v0.3": SHARED / "tokenizers/mistral-7b-instruct-v0.3"}
    rows = []
    for name, model in models_.items():
        tok = Tokenizer.from_file(str(model / "tokenizer.json"))
        for file in sorted((SHARED / "text").glob("*.txt")):
            ids = tok.encode(file.read_bytes().decode(), add_special_tokens=False).ids
            rows.append({"model": name, "file": file.name, "count": len(ids), "hash": ids_hash(ids),
                         "first": ids[:16], "last": ids[-16:]})
        hf, said, got = AutoTokenizer.from_pretrained(model), b"", []
        for line in (SHARED / "text/chat-256.jsonl").read_text().splitlines():
            messages = json.loads(line)["messages"]
            said += hf.apply_chat_template(messages, tokenize=False).encode() + b"\n"
            got += hf.apply_chat_template(messages, tokenize=True, return_dict=False)
        rows.append({"model": name, "file": "chat-256.jsonl", "count": len(got), "hash": ids_hash(got),
                     "first": got[:16], "last": got[-16:], "text": fnv(said)})
    write("texts.json", {"texts": rows})


# Templates of each dialect, in our words: what Mistral's do, with the branches and the white space they do it in.
ALTERNATE = """{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After an optional system message, user and assistant must alternate') }}
    {%- endif %}"""
FOLDED = """{#- a comment #}
{%- if messages[0]["role"] == "system" %}
    {%- set told = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set users = rest | selectattr("role", "equalto", "user") | list %}

{%- set ns = namespace() %}
{%- set ns.turn = 0 %}
{%- for message in rest %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.turn % 2 == 0) %}
            {{- raise_exception("user and assistant must alternate") }}
        {%- endif %}
        {%- set ns.turn = ns.turn + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in rest %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == users[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- for key, val in tool.items() if key != "return" %}
                    {{- '"' + key + '": ' + val|tojson }}
                {%- endfor %}
            {%- endfor %}
        {%- endif %}
        {%- if loop.last and told is defined %}
            {{- "[INST]SP" + told + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]SP" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {%- set out = message.tool_calls[0].function|tojson %}
        {{- out[:-1] }}
    {%- elif message["role"] == "assistant" %}
        {{- ANSWER + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant speak here") }}
    {%- endif %}
{%- endfor %}
"""
MARKED = """{%- set today = strftime_now("%Y-%m-%d") %}
{%- set default = "You are a model.\\nToday is \\"" + today + "\\".\\
 It's fine." %}

{{- bos_token }}

{%- if messages[0]['role'] == 'system' %}
    {%- if messages[0]['content'] is string %}
        {%- set told = messages[0]['content'] %}
    {%- else %}
        {%- set told = messages[0]['content'][0]['text'] %}
    {%- endif %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set told = default %}
    {%- set rest = messages %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + told + '[/SYSTEM_PROMPT]' }}
{%- set kept = [] %}
{%- for message in rest %}
    {%- if message["role"] not in ["tool", "tool_results"] and not message.get("tool_calls") %}
        {%- set kept = kept + [message] %}
    {%- endif %}
{%- endfor %}
{%- for message in rest %}
    """ + ALTERNATE + """
    {%- if message['role'] == 'user' %}
        {%- if message['content'] is string %}
        {{- '[INST]' + message['content'] + '[/INST]' }}
        {%- else %}
            {%- for block in message['content'] %}{{ block['text'] }}{% endfor %}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('Only user, system and assistant!') }}
    {%- endif %}
{%- endfor %}"""
MACRO = """{%- set ns = namespace(told=[], rest=[]) %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set ns.told = ns.told + [message['content']] %}
    {%- else %}
        {%- set ns.rest = ns.rest + [message] %}
    {%- endif %}
{%- endfor %}
{%- macro say(content, what='content') -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {{- raise_exception(what ~ ' must be text') -}}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token }}
{%- if ns.told | length > 0 %}
    {{- '[SYSTEM_PROMPT] ' ~ (ns.told | join('\\n\\n')) ~ '[/SYSTEM_PROMPT]' }}
{%- endif %}
{%- for message in ns.rest %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' ~ say(content=message['content']) ~ '[/INST]' }}
    {%- else %}
        {{- ' ' ~ say(message['content'], what='answer') ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""
V1 = ("{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
      "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
      "{{ message['content'] + eos_tokenGAP}}{% else %}{{ raise_exception('Only two speak here!') }}{% endif %}{% endfor %}")
V1_SYSTEM = """{%- if messages[0]['role'] == 'system' %}
    {%- set told = messages[0]['content'] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}

{{- bos_token }}
{%- for message in rest %}
    """ + ALTERNATE + """
    {%- if message['role'] == 'user' %}
        {%- if loop.first and told is defined %}
            {{- ' [INST] ' + told + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token}}
    {%- else %}
        {{- raise_exception('Only two speak here!') }}
    {%- endif %}
{%- endfor %}
"""
TEMPLATES = [
    ("tiny-mistral", "v3", None), ("old v1 with gaps", "v1", V1.replace("GAP", " + ' '")),
    ("old v1", "v1", V1.replace("GAP", "")), ("v1 with a system message", "v1", V1_SYSTEM),
    ("v3", "v3", FOLDED.replace("SP", " ").replace("ANSWER", '" " + message["content"]|trim')),
    ("v3 for Tekken", "v3-tekken", FOLDED.replace("SP", "").replace("ANSWER", 'message["content"]')),
    ("v3 for Tekken, trimmed", "v3-tekken", FOLDED.replace("SP", "").replace("ANSWER", '" " + message["content"]|trim')),
    ("v7 for Tekken", "v7-tekken", MARKED), ("v7 by a macro", "v7", MACRO),
    ("v15", "v7-tekken", MARKED.replace("{%- set kept = []", "{{- '[MODEL_SETTINGS]{\"a\": 1}[/MODEL_SETTINGS]' }}\n{%- set kept = []")),
    ("ChatML", None, "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}")]


def conversations():
    u, a, s = (lambda c, r=r: {"role": r, "content": c} for r in ("user", "assistant", "system"))
    return [
        [u("hi")], [s("sys"), u("hi")],
        [s(" sys "), u(" hi "), a("  hello \n"), u("again\t"), a("\u00a0x\u2003\x1c"), u("\u00e9 \U0001f44d\U0001f3fd")],
        [u("a"), u("b")], [a("x")], [s("only")], [u("a"), a("b"), s("c"), u("d")], [u("")], [u("a"), a("")],
        [u("<s>[INST]"), a("</s> [/INST]")], [{"role": "tool", "content": "x"}], [s("s"), a("x")], [s("a"), s("b"), u("c")],
        [u("multi\nline\n\n"), a("{{ x }} {% y %}"), u("\\n"), a("  both  ")], [s("s"), u("u"), a("a"), u("v"), a("b")]]


# The language itself: every operator, filter, test and rule of white space that jinja.cpp has.
LANGUAGE = [
    "a\n{% if true %}\n  b\n{% endif %}\nc\n", "  {% if true %}x{% endif %}  \n  {{ 'y' }}  \n", "{# c #}\nx {#- y -#} z\n\n",
    "  {%- if true -%}  x  {%- endif -%}  y", "{%+ if true %}\nx{%+ endif %}", "x\n  {%+ if true %}y{% endif %}", "{{- 'a' }}\n{{ 'b' -}}\n c",
    "{{ 1 + 2 * 3 - 4 // 3 % 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ (1 + 2) * 3 }} {{ 2 - -3 }}", "{{ 'a' ~ 1 ~ true ~ none }}",
    "{{ 'a' + 'b' 'c' }} {{ \"\\t\\x41\\u00e9\\\\\\q\" }}", "{{ not true or false and true }} {{ 1 if false else 2 }}[{{ 1 if false }}]",
    "{{ 1 == 1 }} {{ 'a' != 'b' }} {{ 2 <= 1 }} {{ 'a' < 'b' }} {{ 3 > 2 }} {{ 'b' in 'abc' }} {{ 'x' not in ['x'] }} {{ 'k' in {'k': 1} }}",
    "{{ nothing is defined }} {{ nothing is not defined }} {{ x is none }} {{ n is none }} {{ x is string }} {{ d is mapping }} {{ l is sequence }}",
    "{{ 3 is odd }} {{ 3 is even }} {{ 3 is equalto 3 }} {{ 'a' is eq 'b' }} {{ 1 is number }} {{ true is boolean }} {{ true is true }} {{ l is iterable }}",
    "{{ ' a b ' | trim }}|{{ l | length }}|{{ l | join(', ') }}|{{ l | first }}|{{ l | last }}|{{ nothing | default('d') }}|{{ 'aB' | upper }}|{{ 'aB' | lower }}",
    "{{ l[0] }}{{ l[-1] }}{{ l[1:] | join }}{{ l[:-1] | join }}{{ 'h\u00e9llo'[1:3] }}{{ 'h\u00e9llo'[-1] }}[{{ l[9] }}]{{ d.a }}{{ d['a'] }}[{{ d.z }}]",
    "{{ ' x '.strip() }}{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith('ab') }}{{ 'aXa'.replace('X', '-') }}{{ d.get('a') }}{{ d.get('z', 5) }}{{ d.get('z') }}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for k in d.keys() %}{{ k }}{% endfor %}",
    "{% for i in l if i != 'y' %}{{ loop.index0 }}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ i }} {% else %}none{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}{% for i in range(3) %}{{ i }}{% endfor %}{% for c in 'h\u00e9' %}{{ c }}.{% endfor %}",
    "{% set y = 1 %}{% for i in l %}{% set y = 2 %}{{ y }}{% endfor %}{{ y }}{% if true %}{% set y = 3 %}{% endif %}{{ y }}",
    "{% set ns = namespace(i=0) %}{% for i in l %}{% set ns.i = ns.i + 1 %}{% endfor %}{{ ns.i }}",
    "{{ m | selectattr('role', 'equalto', 'user') | list | length }}{{ m | rejectattr('role', 'equalto', 'user') | list | length }}{{ m | selectattr('role') | list | length }}",
    "{% macro f(a, b='B') %}<{{ a }}{{ b }}{{ x }}>{% endmacro %}{{ f('A') }}{{ f('A', 'C') }}{{ f(b='D', a='E') }}{% for x in ['loop'] %}{{ f('F') }}{% endfor %}",
    "{% if false %}a{% elif n %}b{% elif l %}c{% else %}d{% endif %}{% if '' or 0 or [] or {} or nothing %}e{% endif %}",
    "{% if false %}{{ x.y.z | frob(1, a=2) is frobbed }}{{ {'a': {'b': [1, 2]}} }}{% endif %}{{ {'a': {'b': 'in'}}['a'].b }}",
    "{{ m[0].content.content is defined }} {{ m[0] == m[0] }} {{ m[0] == m[1] }} {{ (nothing or 'x') }} {{ ('' and 1) }}|",
    "{{ 'unterminated", "{% if true %}", "{% endif %}", "{{ }}", "{{ 1 + }}", "{{ 'a' + 1 }}", "{{ nothing.x }}", "{{ nothing + 'a' }}", "{# x"]
VARIABLES = {"x": "X", "n": None, "l": ["x", "y", "z"], "d": {"a": 1, "b": "c"},
             "m": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}, {"role": "", "content": ""}]}


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(1740000000, datetime.timezone.utc).replace(tzinfo=None)


def attempt(f):
    try:
        return f()
    except Exception as refused:
        return {"refused": str(refused)}


def make_chat():
    chat_utils.datetime = Fixed
    hf, dialogues = AutoTokenizer.from_pretrained(MODEL), conversations()
    rows = []
    for name, dialect, source in TEMPLATES:
        text = [attempt(lambda: hf.apply_chat_template(c, chat_template=source, tokenize=False)) for c in dialogues]
        ids = [attempt(lambda: hf.apply_chat_template(c, chat_template=source, tokenize=True, return_dict=False))
               for c in dialogues]
        rows.append({"name": name, "dialect": dialect, "source": source, "text": text,
                     "ids": [ids_hash(i) if isinstance(i, list) else "" for i in ids]})
    language = [{"source": s, "text": attempt(lambda: chat_utils._compile_jinja_template(s).render(**VARIABLES))}
                for s in LANGUAGE]
    write("chat.json", {"dialogues": dialogues, "templates": rows, "variables": VARIABLES, "language": language})


def draw(lines, samples, seed):
    """The documented draw, written a second time."""
    mask, state, order = 2**64 - 1, seed, list(range(lines))

    def following():
        nonlocal state
        state = state + 0x9E3779B97F4A7C15 & mask
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return z ^ z >> 31

    def below(n):
        while (r := following()) >= 2**64 - 2**64 % n:
            pass
        return r % n

    for i in range(min(samples, lines)):
        j = i + below(lines - i)
        order[i], order[j] = order[j], order[i]
    return order[:samples]


def make_calibration():
    from llmcompressor.transformers.data.open_platypus import OpenPlatypusDataset
    alpaca = OpenPlatypusDataset.dataset_template.fget if isinstance(OpenPlatypusDataset.dataset_template, property) \
        else OpenPlatypusDataset.dataset_template
    owner = type("owner", (), {"ALPACA_TEMPLATE": OpenPlatypusDataset.ALPACA_TEMPLATE, "PROMPT_KEY": "prompt"})
    hf = AutoTokenizer.from_pretrained(MODEL)
    lines = [{"text": "The state of the Union is strong."}, {"text": " \u00e9 <s> x\n"},
             {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
             {"instruction": "Count.", "input": "", "output": "One, two."}, {"instruction": "Count.", "output": "One."},
             {"instruction": "Add.", "input": "1 and 2", "output": "3"}, {"instruction": "Nothing more"}]
    rows = []
    for line in lines:
        if "messages" in line:
            ids = hf.apply_chat_template(line["messages"], tokenize=True, return_dict=False)
        else:
            ids = hf(line["text"] if "text" in line else alpaca(owner, line)["text"]).input_ids
        rows.append({"line": line, "ids": ids})
    draws = [{"lines": n, "samples": k, "seed": s, "order": draw(n, k, s)}
             for n, k, s in ((10, 4, 42), (10, 9, 0), (100, 7, 1), (100, 7, 2**64 - 1), (1000, 16, 42))]
    write("calibration.json", {"lines": rows, "draws": draws})


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    make_strings()
    make_chat()
    make_calibration()
    if SHARED.exists():
        make_texts()
    else:
        sys.exit("../shared/data is not there: texts.json stays as it is")
