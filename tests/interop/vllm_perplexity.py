# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a checkpoint in vLLM, from the log-probabilities of its prompts, in bf16."""

import math
import os

import windows

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main():
    import vllm

    directory, text, window, count = windows.arguments()
    # A prompt has to leave room for the token that vLLM insists on generating.
    model = vllm.LLM(model=directory, dtype="bfloat16", max_model_len=window + 2, enforce_eager=True)
    pieces = windows.cut(windows.ids_of(model.get_tokenizer(), text), window, count)
    answers = model.generate([{"prompt_token_ids": piece} for piece in pieces],
                             vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))
    total, scored = 0.0, 0
    for piece, answer in zip(pieces, answers):
        for token, candidates in list(zip(piece, answer.prompt_logprobs))[1:]:
            total -= candidates[token].logprob
            scored += 1
    windows.report(math.exp(total / scored), vllm=vllm.__version__)


if __name__ == "__main__":
    main()
