"""Tokenizers of the two text encoders: every known word is one token, case does not matter."""

from __future__ import annotations

import json
import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

CLIP_LENGTH = 24
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(words: list[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer whose merges spell `words`; any other text falls back to bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(unk_token=EOS, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        initial_alphabet=alphabet,
        special_tokens=[BOS, EOS],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    vocab: dict[str, int] = tokenizer.get_vocab()
    # A byte that ends a word carries the suffix; the trainer only adds those that it has met.
    for character in alphabet:
        vocab.setdefault(character + "</w>", len(vocab))
    merges = [tuple(pair) for pair in _merges(tokenizer)]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH, pad_token=EOS)


def t5_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A unigram tokenizer over `words`, with single letters and digits for the rest and punctuation dropped."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [("▁" + word, -4.0) for word in words]
    pieces += [(character, -12.0) for character in string.ascii_lowercase + string.digits]
    pieces = list(dict(pieces).items())
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^\p{L}\p{N} ]+"), " "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CLIP_LENGTH,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    """Merges of a trained BPE tokenizer, which its Python object only tells in its JSON form."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
