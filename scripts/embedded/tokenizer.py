"""Make the embedded models' CLIP tokenizer: byte-level BPE in which every word of the captions is one token."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from diffalign.data.flaws import FLAW_CAPTIONS
from diffalign.data.photographs import captions

MAX_LENGTH = 24  # tokens; the longest caption with a prefix takes 17
WORDS = "realistic picture image of in the with and an sharp clean detailed beautiful bad ugly low high quality"


def build() -> CLIPTokenizer:
    """A CLIPTokenizer whose words are single tokens; any other text falls back to bytes."""
    texts = [*captions(), *FLAW_CAPTIONS.values(), WORDS]
    words = sorted({word for text in texts for word in re.findall(r"[a-z]+|[^\sa-z]", text.lower())})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,  # more than there are merges to learn
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(words)], trainer)
    with tempfile.TemporaryDirectory() as folder:
        bpe.model.save(folder)
        merges = Path(folder, "merges.txt").read_text().splitlines()
    merges = [tuple(line.split()) for line in merges if not line.startswith("#version")]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
    assert len(tokenizer("a photo of a dahlia flower")["input_ids"]) == 8, "a word fell to pieces"
    return tokenizer
