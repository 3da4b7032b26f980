#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the SentencePiece tokenizer of tiny-mistral: 2048 BPE pieces in the manner of Mistral-7B's (byte fallback,
split digits, no normalization), with [INST] and [/INST] as control symbols."""
import argparse
from pathlib import Path

import sentencepiece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=Path, default=Path("corpus/sentences.txt"))
    parser.add_argument("--output", type=Path, default=Path("corpus/tokenizer"), help="name without .model")
    options = parser.parse_args()
    sentencepiece.SentencePieceTrainer.train(
        input=str(options.sentences),
        model_prefix=str(options.output),
        model_type="bpe",
        vocab_size=2048,
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        control_symbols=["[INST]", "[/INST]"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        input_sentence_size=400_000,
        shuffle_input_sentence=True,
        max_sentence_length=8192,
        num_threads=2,
    )


if __name__ == "__main__":
    main()
