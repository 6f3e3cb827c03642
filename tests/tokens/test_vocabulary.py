"""Tokens as byte strings, and text in mid-sequence as the tokenizer itself segments it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_builders import byte_level, unigram, word_piece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from muscle_hf import MuscleError
from muscle_hf.tokens import ByteVocabulary

TEXT = st.text(
    alphabet=st.characters(blacklist_categories=("Cs",), blacklist_characters="\r"), min_size=1, max_size=40
)
NAMES = ("stories260k", "aidreams260k", "stories290k_bpe")


@pytest.fixture(scope="module")
def vocabularies(shared_dir: Path) -> list[ByteVocabulary]:
    return [ByteVocabulary.of(AutoTokenizer.from_pretrained(shared_dir / "models" / name)) for name in NAMES]


@pytest.fixture(scope="module")
def tokenizers(shared_dir: Path) -> list[PreTrainedTokenizerFast]:
    return [AutoTokenizer.from_pretrained(shared_dir / "models" / name) for name in NAMES]


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_text_in_mid_sequence_is_segmented_as_in_a_whole_text(vocabularies, tokenizers, text):
    for vocabulary, tokenizer in zip(vocabularies, tokenizers, strict=True):
        row = tokenizer("x " + text, add_special_tokens=False)["input_ids"]
        whole = (
            vocabulary.pieces([b" x " + text.encode()])[0]
            if vocabulary.fallback
            else vocabulary.pieces([b"x " + text.encode()])[0]
        )
        assert whole == row
        assert vocabulary.text(whole).endswith(text.encode())
        assert vocabulary.ends(whole)[-1] == len(vocabulary.text(whole))


@settings(max_examples=60, deadline=None)
@given(data=st.binary(min_size=1, max_size=12))
def test_any_bytes_have_pieces_that_spell_them(vocabularies, data):
    for vocabulary in vocabularies:
        assert vocabulary.text(vocabulary.pieces([data])[0]) == data


def test_tokens_of_both_kinds(vocabularies, tokenizers):
    sentence_piece, byte = vocabularies[0], vocabularies[2]
    assert sentence_piece.strings[tokenizers[0].get_vocab()["▁the"]] == b" the"
    newline = tokenizers[0].get_vocab()["<0x0A>"]
    assert sentence_piece.strings[newline] == b"\n" and sentence_piece.fallback[newline] == 10
    assert sentence_piece.canonical[newline] and not sentence_piece.canonical[tokenizers[0].get_vocab()["<0x61>"]]
    assert byte.strings[tokenizers[2].get_vocab()["Ġthe"]] == b" the" and byte.canonical.sum() == 1023
    assert byte.special == {0: "<|endoftext|>"} and byte.strings[0] is None
    assert byte.roles["eos_token"] == 0


def test_prefixes(vocabularies):
    for vocabulary in vocabularies:
        strings = [string for string in vocabulary.strings if string]
        for prefix in (b" t", b" the", b"zzz", b"\xff", b"e"):
            longer = {string for string in strings if string.startswith(prefix) and string != prefix}
            assert {vocabulary.string(id) for id in vocabulary.extending(prefix)} == longer
            assert vocabulary.extends(prefix) == bool(longer)
            assert {vocabulary.string(id) for id in vocabulary.beginning(prefix)} == longer | ({prefix} & set(strings))
            assert vocabulary.begins(prefix) == bool(longer or prefix in strings)


def test_a_row_is_cut_at_special_tokens():
    tokenizer = byte_level([("a", "b")])
    row = tokenizer("<s>ab</s>c", add_special_tokens=False)["input_ids"]
    vocabulary = ByteVocabulary.of(tokenizer)
    assert [(one.text, one.closed_by) for one in vocabulary.sections(row, vocabulary.special)] == [
        (b"", tokenizer.bos_token_id),
        (b"ab", tokenizer.eos_token_id),
        (b"c", -1),
    ]


def test_added_tokens_that_are_not_special_are_found_in_text():
    tokenizer = byte_level([("a", "b")])
    tokenizer.add_tokens(["ca"])
    vocabulary = ByteVocabulary.of(tokenizer)
    assert vocabulary.pieces([b"cab"])[0] == tokenizer("cab")["input_ids"]
    before = vocabulary.size
    tokenizer.add_tokens(["bb"])
    assert ByteVocabulary.of(tokenizer).size == before + 1


@pytest.mark.parametrize("words", [False, True])
def test_unigram_begins_a_text_without_a_blank_in_mid_sequence(words: bool):
    tokenizer = unigram({"▁": -3.0, "▁a": -1.0, "a": -2.0, "b": -2.0, "ab": -2.5}, words=words)
    vocabulary = ByteVocabulary.of(tokenizer)
    assert [vocabulary.string(id) for id in vocabulary.pieces([b"ab a"])[0]] == [b"ab", b" a"]
    assert vocabulary.pieces([b" ab a"])[0] == tokenizer("ab a", add_special_tokens=False)["input_ids"]
    assert np.flatnonzero(vocabulary.canonical).tolist() == [2, 3, 4, 5, 6]


def test_what_is_refused():
    lower = byte_level([("a", "b")])
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    plain = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    for tokenizer in (word_piece(["the"]), lower, PreTrainedTokenizerFast(tokenizer_object=plain)):
        with pytest.raises(MuscleError, match="ChoiceLog"):
            ByteVocabulary.of(tokenizer)
