"""Tokenizers."""

from __future__ import annotations

from training.captions import vocabulary
from training.data import object_names
from training.text import CLIP_LENGTH, clip_tokenizer, t5_tokenizer

WORDS = vocabulary(object_names("embedded"))


def test_every_known_word_is_one_token() -> None:
    clip, t5 = clip_tokenizer(WORDS), t5_tokenizer(WORDS)
    for word in WORDS:
        assert clip.tokenize(word) == [word + "</w>"]
        assert t5.tokenize(word) == ["▁" + word]


def test_case_and_punctuation_do_not_matter() -> None:
    clip, t5 = clip_tokenizer(WORDS), t5_tokenizer(WORDS)
    assert clip("A Red Apple").input_ids == clip("a red apple").input_ids
    assert t5("A red apple, blue background!").input_ids == t5("a red apple blue background").input_ids


def test_unknown_words_still_have_tokens() -> None:
    clip, t5 = clip_tokenizer(WORDS), t5_tokenizer(WORDS)
    assert len(clip("zebra").input_ids) > 3
    assert t5.unk_token_id not in t5("zebra").input_ids


def test_padding_is_the_encoders() -> None:
    clip = clip_tokenizer(WORDS)
    ids = clip("an owl", padding="max_length", max_length=CLIP_LENGTH).input_ids
    assert (ids[0], ids[-1], len(ids)) == (clip.bos_token_id, clip.eos_token_id, CLIP_LENGTH)
