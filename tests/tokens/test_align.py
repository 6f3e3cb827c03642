"""v1's view of a row, and where v1 may be at each of its trained tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_vocabulary import TEXT
from tokenizer_builders import byte_level, unigram
from tokenizers import normalizers
from transformers import AutoTokenizer

from muscle_hf import MuscleError
from muscle_hf.tokens import Aligner, View

OLD, NEW = "stories260k", "stories290k_bpe"


@pytest.fixture(scope="module")
def aligners(shared_dir: Path) -> dict[tuple[str, str], Aligner]:
    load = {name: AutoTokenizer.from_pretrained(shared_dir / "models" / name) for name in (OLD, NEW)}
    return {(old, new): Aligner(load[old], load[new]) for old, new in ((OLD, NEW), (NEW, OLD))}


def check(aligner: Aligner, row: list[int], view: View, trained: list[int]) -> None:
    """Each place's path and steps say the same text as the student's tokens around it."""
    ends = aligner.new.ends(row)
    for index, place in zip(trained, view.places, strict=True):
        if place is None:
            continue
        assert place.label == row[index] and len(place.steps) == len(place.path) == len(place.settled)
        asked = range(place.first, place.first + len(place.steps))
        assert asked[0] >= 0 and asked[-1] < len(view.old_ids)
        behind = [view.old_ids[at + 1] if at + 1 < len(view.old_ids) else -1 for at in asked]
        assert list(place.path) == behind
        start = int(ends[index] - len(aligner.new.string(row[index])))
        to_end = int(ends[-1]) - start
        for at, step in zip(asked, place.steps, strict=True):
            rest = len(aligner.old.text(view.old_ids[at + 1 :]))
            assert (to_end > rest) - (to_end < rest) == step.kind
            if not step.residue:
                read = aligner.new.text(step.read)
                assert read == step.carry + step.within or (step.kind >= 0 and step.carry.startswith(read))


@settings(max_examples=80, deadline=None)
@given(prompt=TEXT, answer=TEXT)
def test_places_lie_where_the_texts_say(aligners, prompt, answer):
    for aligner in aligners.values():
        # What is spelt like a special token is one to its tokenizer, and no text to the other.
        marks = {*aligner.old.special.values(), *aligner.new.special.values()}
        assume(not any(mark in prompt + answer for mark in marks))
        new = aligner.new_tokenizer
        row = new(prompt + answer)["input_ids"]
        trained = list(range(len(row) // 2, len(row)))
        view = aligner.view(row, trained)
        assert view.aligned and len(view.places) == len(trained)
        text = aligner.old.text(view.old_ids)
        assert text.endswith((prompt + answer).encode())
        check(aligner, row, view, trained)
        # v1 says nothing of its row's first token, nor the student of its own.
        says = len(text) if view.old_ids[0] in aligner.old.special else len(aligner.old.text(view.old_ids[1:]))
        ends = aligner.new.ends(row)
        for index, place in zip(trained, view.places, strict=True):
            starts = ends[-1] - ends[index] + len(aligner.new.string(row[index]))
            assert (place is None) == (row[index] in aligner.new.special or starts > says), index


@pytest.mark.parametrize(("old", "new"), [(OLD, NEW), (NEW, OLD)])
def test_the_beginning_is_each_tokenizers_own_and_the_end_is_the_students(aligners, old: str, new: str):
    aligner = aligners[old, new]
    text = "Once upon a time"
    row = aligner.new_tokenizer(text)["input_ids"]
    assert (row[0] == aligner.new_tokenizer.bos_token_id) == (new == OLD)
    assert aligner.view(row, [1]).old_ids == aligner.old_tokenizer(text)["input_ids"]
    ended = [*row, aligner.new_tokenizer.eos_token_id]
    view = aligner.view(ended, [len(row)])
    assert view.old_ids == [*aligner.old_tokenizer(text)["input_ids"], aligner.old_tokenizer.eos_token_id]
    (place,) = view.places
    assert place is not None and place.path == (aligner.old_tokenizer.eos_token_id,)
    assert place.first == len(view.old_ids) - 2 and place.label == ended[-1]


def test_another_prompt_of_v1(aligners):
    aligner = aligners[OLD, NEW]
    row = aligner.new_tokenizer("Where is Rome? Type of answer: location")["input_ids"]
    answer = [len(row) - count for count in (3, 2, 1)]
    words = aligner.new.text([row[index] for index in answer])
    assert words.endswith(b"ation")
    for before in ("<user> Where is Rome?\n<assistant>\nlocation", "Rome is a location", "Q: Rome. A:location"):
        own = aligner.old_tokenizer(before)["input_ids"]
        view = aligner.view(row, answer, own)
        assert view.aligned and None not in view.places and view.old_ids == own
    assert not aligner.view(row, answer, aligner.old_tokenizer("Rome is a city")["input_ids"]).aligned


@pytest.mark.parametrize("thought", ["<think>\n\n</think>\n\n", "\n<think>\nIt is a town.\n</think>\n\n"])
def test_what_v2s_template_thinks_before_the_answer_gets_no_target(aligners, thought: str):
    aligner = aligners[OLD, NEW]
    tokenizer = aligner.new_tokenizer
    parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Rome:\n", thought, "a location")]
    row, end = [id for part in parts for id in part], tokenizer.eos_token_id
    trained = list(range(len(parts[0]), len(row) + 1))

    def in_v1(text):
        return [*aligner.old_tokenizer(text)["input_ids"], aligner.old_tokenizer.eos_token_id]

    for before in ("Where is Rome?\na location", "Rome:\n\na location", "<think>No.</think>a location"):
        view = aligner.view([*row, end], trained, in_v1(before))
        has_place = [place is not None for place in view.places]
        assert view.aligned and has_place == [False] * len(parts[1]) + [True] * (len(parts[2]) + 1)
    assert not aligner.view([*row, end], trained, in_v1("Where is Rome?\nin Italy")).aligned
    # Where both read one text, v1 thinks what v2 does.
    assert None not in aligner.view([*row, end], trained).places


def test_separators_of_both_prompts_are_residue_and_carry():
    old, new = byte_level([(" ", "a"), ("b", "c")], letters="abc \n"), byte_level([("\n", "a")], letters="abc \n")
    aligner = Aligner(old, new)
    row = new("b\nabc")["input_ids"]
    view = aligner.view(row, [1, 2, 3], old("c abc")["input_ids"])
    first = view.places[0]
    assert first is not None and (first.steps[0].residue, first.steps[0].carry) == (b" ", b"\n")
    assert first.path[0] == old.get_vocab()["Ġa"]


def test_a_row_that_v1_normalises_is_not_aligned_but_its_prompt_may_be():
    old, new = byte_level([("a", "b")]), byte_level([("b", "c")])
    old.backend_tokenizer.normalizer = normalizers.Replace("cc", "c")
    aligner = Aligner(old, new)
    row = new("ccab")["input_ids"]
    assert aligner.view(row, [2, 3]).aligned
    whole = aligner.view(row, [0, 1, 2, 3])
    assert not whole.aligned and whole.places == [None] * 4


def test_rows_are_cut_at_special_tokens_that_both_have():
    old, new = byte_level([("a", "b")]), byte_level([("b", "c")])
    new.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    aligner = Aligner(old, new)
    turn, end = new.convert_tokens_to_ids("<turn>"), new.eos_token_id
    row = [*new("cab")["input_ids"], end, turn, *new("abc")["input_ids"], end]
    view = aligner.view(row, list(range(len(row))))
    assert view.old_ids == [*old("cab")["input_ids"], old.eos_token_id, *old("abc")["input_ids"], old.eos_token_id]
    has_place = [place is not None for place in view.places]
    # v1 has no token before its first, and none of the text of "<turn>".
    assert has_place == [False, True, True, True, False, True, True, True]
    check(aligner, row, view, list(range(len(row))))


def test_v1_ends_and_begins_a_text_as_its_tokenizer_does():
    old, new = unigram({"▁": -3.0, "▁a": -1.0, "a": -2.0, "b": -2.0}), byte_level([("a", "b")])
    aligner = Aligner(old, new)
    row = new("ab")["input_ids"]
    view = aligner.view([*row, new.eos_token_id], [0, 1])
    assert view.old_ids == old("ab")["input_ids"] and view.old_ids[-1] == old.eos_token_id
    assert [place is not None for place in view.places] == [False, True]


def test_a_row_that_was_cut_within_a_character(aligners):
    aligner = aligners[OLD, NEW]
    row = aligner.new_tokenizer("Tom ate é")["input_ids"][:-1]
    view = aligner.view(row, [1, 2])
    assert view.aligned


def test_positions_outside_the_row_are_refused(aligners):
    with pytest.raises(MuscleError, match="5"):
        aligners[OLD, NEW].view([1, 2, 3], [1, 5])


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXT, min_size=2, max_size=4))
def test_a_common_end_is_counted(texts):
    from muscle_hf.tokens.align import _common_end

    one, other = texts[0].encode(), texts[1].encode()
    assert _common_end(one + other, other) == len(other)
    assert _common_end(b"x" + other, b"y" + other) == len(other)
