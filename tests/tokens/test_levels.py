"""Which of two vocabularies' tokens are the same, and how far the tokenizers agree."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tokenizer_builders import byte_level, renumbered, unigram, word_piece
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from muscle_hf import MuscleError
from muscle_hf.tokens import ByteVocabulary, compare_vocabularies

TEXT = "Once upon a time, there was a little girl. She said: \"It's 12 o'clock – naïve Café!\"\n"


@pytest.fixture(scope="module", params=["stories260k", "stories290k_bpe"])
def folder(request: pytest.FixtureRequest, shared_dir: Path) -> Path:
    return shared_dir / "models" / request.param


def test_one_vocabulary_is_the_same(folder: Path):
    one, other = (AutoTokenizer.from_pretrained(folder) for _ in range(2))
    found = compare_vocabularies(one, other)
    assert found.level == "same" and found.agree(one(TEXT)["input_ids"])
    assert torch.equal(found.to_old, torch.arange(len(one))) and found.shared == len(one)


def test_another_numbering_with_special_tokens_in_front(folder: Path):
    old = AutoTokenizer.from_pretrained(folder)
    new, ids = renumbered(folder, special=["[control]", "<tool>"])
    found = compare_vocabularies(old, new)
    assert found.level == "renumbered"
    assert found.to_old[:2].tolist() == [-1, -1] and found.to_old[ids].tolist() == list(range(len(ids)))
    assert found.known.tolist() == sorted(ids)
    row = new(TEXT)["input_ids"]
    assert found.agree(row) and found.to_old[row].tolist() == old(TEXT)["input_ids"]


def test_an_added_ordinary_token_is_decided_by_the_row(folder: Path):
    old = AutoTokenizer.from_pretrained(folder)
    new, _ = renumbered(folder, plain=["little girl"])
    found = compare_vocabularies(old, new)
    assert found.level == "renumbered" and found.to_old[0] == -1
    assert not found.agree(new(TEXT)["input_ids"])
    assert found.agree(new(TEXT.replace("girl", "boy"))["input_ids"])
    back = compare_vocabularies(new, old)
    assert back.level == "renumbered" and not back.agree(old(TEXT)["input_ids"])


def test_a_padding_token_that_was_added(folder: Path):
    old, new = (AutoTokenizer.from_pretrained(folder) for _ in range(2))
    new.add_special_tokens({"pad_token": "<pad>"})
    for one, other in ((old, new), (new, old)):
        found = compare_vocabularies(one, other)
        assert found.level == "renumbered" and len(found.known) == len(old)


def test_renamed_special_tokens_go_by_their_role():
    old = byte_level([("a", "b")])
    new = copy.deepcopy(old)
    new.add_special_tokens({"eos_token": "<|end|>"})
    found = compare_vocabularies(old, new)
    # Both have "</s>", which was the end of a text: by text first, so that ids mean what they say.
    assert found.level == "renumbered" and found.to_old[new.eos_token_id] == -1
    only = byte_level([("a", "b")]).backend_tokenizer.to_str().replace("</s>", "<|end|>")
    renamed = PreTrainedTokenizerFast(tokenizer_object=type(old.backend_tokenizer).from_str(only), eos_token="<|end|>")
    found = compare_vocabularies(old, renamed)
    assert found.level == "renumbered" and found.to_old[renamed.eos_token_id] == old.eos_token_id


def test_the_same_tokens_with_other_merges_are_foreign():
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("c", "c"), ("a", "a")]
    old, new = byte_level(merges), byte_level(merges[1::-1] + merges[2:])
    assert set(old.get_vocab()) == set(new.get_vocab())
    found = compare_vocabularies(old, new)
    assert found.level == "foreign" and found.shared == len(merges) + 3


def test_one_token_less_is_foreign(folder: Path):
    old, new = byte_level([("a", "b"), ("b", "c")]), byte_level([("a", "b")])
    assert compare_vocabularies(old, new).level == "foreign"


def test_tokens_are_compared_by_their_bytes(shared_dir: Path):
    old, new = (
        AutoTokenizer.from_pretrained(shared_dir / "models" / name) for name in ("stories260k", "stories290k_bpe")
    )
    found = compare_vocabularies(old, new)
    assert found.level == "foreign" and found.shared == 400
    blank_the = {one.get_vocab()[text] for one, text in ((old, "▁the"), (new, "Ġthe"))}
    assert {int(found.to_old[new.get_vocab()["Ġthe"]]), new.get_vocab()["Ġthe"]} == blank_the
    # The letter, not the byte-fallback token that spells the same.
    assert found.to_old[new.get_vocab()["a"]] == old.get_vocab()["a"]
    assert found.to_old[new.eos_token_id] == old.eos_token_id or found.to_old[new.bos_token_id] == old.bos_token_id


def test_unigram_models_are_byte_strings():
    pieces = {"▁": -3.0, "▁a": -1.0, "a": -2.0, "b": -2.0, "ab": -2.5, "▁ab": -2.5}
    old, new = unigram(pieces), unigram({"b": -2.0, **pieces, "c": -5.0}, prepend="first")
    found = compare_vocabularies(old, new)
    assert found.level == "renumbered" and found.agree(new("ab a b")["input_ids"])
    assert not found.agree(new("ab c")["input_ids"])
    assert ByteVocabulary.of(old).strings[old.get_vocab()["▁ab"]] == b" ab"


def test_tokens_that_are_no_byte_strings():
    old = word_piece(["the", "cat", "##s"])
    new = copy.deepcopy(old)
    new.add_special_tokens({"pad_token": "[PAD]"})
    found = compare_vocabularies(old, new)
    row = new("The cats")["input_ids"]
    assert found.level == "renumbered" and found.agree(row)
    for one in (old, new):  # which leaves padding and truncation in the tokenizer
        one.add_special_tokens({"pad_token": "[PAD]"})
        one("The", padding="max_length", truncation=True, max_length=2)
    new.add_tokens(["zebra"])
    for other in (found, compare_vocabularies(old, new)):
        assert other.level == "renumbered" and other.agree(row)
    for other in (word_piece(["the", "dog"]), byte_level([("a", "b")])):
        with pytest.raises(MuscleError, match="WordPiece"):
            compare_vocabularies(old, other)
        with pytest.raises(MuscleError, match="WordPiece"):
            compare_vocabularies(other, old)
