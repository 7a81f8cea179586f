"""The embedded models' CLIP tokenizer: byte-level BPE in which every word of the captions is one token.

``merges.txt`` was learned once, from the words of the captions and a few common ones, by the trainer of the tokenizers
library. It is kept because that trainer breaks ties differently from run to run.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

MAX_LENGTH = 24  # tokens; the longest caption with a prefix takes 16
MERGES = Path(__file__).with_name("merges.txt")


def build() -> CLIPTokenizer:
    """A CLIPTokenizer whose words are single tokens; any other text falls back to bytes."""
    merges = [tuple(line.split()) for line in MERGES.read_text().splitlines()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
