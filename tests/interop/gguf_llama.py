# SPDX-License-Identifier: Apache-2.0
"""llama.cpp itself on GGUF files, by its C functions in the shared library of the Python package xllamacpp. As a program:
    gguf_llama.py FILE.gguf TEXT WINDOW WINDOWS
prints RESULT and JSON: the perplexity of the first windows of ids, each read from its start without history and behind a BOS that
is the first id of the text alone (windows.py), and the first ids."""
import ctypes as c
import json
import math
import os
import sys

import numpy as np
import xllamacpp

LIBRARY = c.CDLL(os.path.join(os.path.dirname(xllamacpp.__file__), "xllamacpp.abi3.so"))


class Blob(c.Structure):
    """Parameters of a size that may grow: passed by value as the last argument, so more room than needed does no harm."""
    _fields_ = [("bytes", c.c_uint64 * 256)]

    def put(self, offset, kind, value):
        kind.from_buffer(self, offset).value = value


class Batch(c.Structure):
    _fields_ = [("n_tokens", c.c_int32), ("token", c.POINTER(c.c_int32)), ("embd", c.c_void_p),
                ("pos", c.POINTER(c.c_int32)), ("n_seq_id", c.POINTER(c.c_int32)),
                ("seq_id", c.POINTER(c.POINTER(c.c_int32))), ("logits", c.POINTER(c.c_int8))]


def function(name, result, *arguments):
    f = getattr(LIBRARY, name)
    f.restype, f.argtypes = result, arguments
    return f


model_params = function("llama_model_default_params", Blob)
context_params = function("llama_context_default_params", Blob)
load = function("llama_model_load_from_file", c.c_void_p, c.c_char_p, Blob)
free_model = function("llama_model_free", None, c.c_void_p)
init = function("llama_init_from_model", c.c_void_p, c.c_void_p, Blob)
free_context = function("llama_free", None, c.c_void_p)
vocabulary_of = function("llama_model_get_vocab", c.c_void_p, c.c_void_p)
vocabulary_size = function("llama_vocab_n_tokens", c.c_int32, c.c_void_p)
tokenize = function("llama_tokenize", c.c_int32, c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32,
                    c.c_bool, c.c_bool)
batch_init = function("llama_batch_init", Batch, c.c_int32, c.c_int32, c.c_int32)
batch_free = function("llama_batch_free", None, Batch)
decode = function("llama_decode", c.c_int32, c.c_void_p, Batch)
get_logits = function("llama_get_logits", c.POINTER(c.c_float), c.c_void_p)
memory_of = function("llama_get_memory", c.c_void_p, c.c_void_p)
memory_clear = function("llama_memory_clear", None, c.c_void_p, c.c_bool)
LOGGER = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
SILENT = LOGGER(lambda level, text, data: sys.stderr.write(text.decode(errors="replace")) if level == 4 else None)
function("llama_log_set", None, LOGGER, c.c_void_p)(SILENT, None)
function("llama_backend_init", None)()


class Model:
    """A GGUF file in llama.cpp, on the CPU. @param context  ids that are read at once."""

    def __init__(self, path, context=512):
        self.model = load(str(path).encode(), model_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        parameters = context_params()
        for offset in (0, 4, 8):  # n_ctx, n_batch, n_ubatch
            parameters.put(offset, c.c_uint32, context)
        self.context, self.length = init(self.model, parameters), context
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context for {path}")
        self.vocabulary = vocabulary_of(self.model)
        self.size = vocabulary_size(self.vocabulary)

    def ids(self, text, framed=True):
        data = text.encode()
        out = (c.c_int32 * (len(data) + 16))()
        count = tokenize(self.vocabulary, data, len(data), out, len(out), framed, True)
        assert count >= 0
        return list(out[:count])

    def logits(self, ids):
        """(len(ids), vocabulary), each from those before it and its own."""
        assert 0 < len(ids) <= self.length
        memory_clear(memory_of(self.context), True)
        batch = batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        assert decode(self.context, batch) == 0
        batch_free(batch)
        return np.ctypeslib.as_array(get_logits(self.context), (len(ids), self.size)).astype(np.float64)

    def greedy(self, ids, count):
        ids = list(ids)
        for _ in range(count):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids


def log_probabilities(logits):
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def perplexity(model, ids, window, windows):
    total, count = 0.0, 0
    for begin in range(0, len(ids) - 1, window):
        read = ids[begin:begin + window]
        targets = ids[begin + 1:begin + window + 1]
        if windows and begin // window >= windows:
            break
        scores = log_probabilities(model.logits(read[:len(targets)]))
        total -= sum(scores[i, t] for i, t in enumerate(targets))
        count += len(targets)
    return math.exp(total / count)


def main():
    path, text, window, windows = sys.argv[1], open(sys.argv[2], encoding="utf-8").read(), int(sys.argv[3]), int(sys.argv[4])
    model = Model(path)
    ids = model.ids(text)
    print("RESULT", json.dumps({"perplexity": perplexity(model, ids, window, windows), "ids": ids[:20]}))


if __name__ == "__main__":
    main()
