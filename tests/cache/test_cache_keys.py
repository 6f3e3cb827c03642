"""Keys: a sequence has the same one in every batch, and another as soon as the teacher would see something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import builders
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from muscle_hf.cache import KeyRules, SequenceKey, row_keys
from muscle_hf.teachers.batch import IGNORED, Batch
from muscle_hf.teachers.kinds import CAUSAL_LM, SEQ2SEQ_LM, SEQUENCE_CLASSIFICATION, kind_of

Row = list[int]
LLAMA = builders.llama(0)
GPT2 = builders._built(
    transformers.GPT2LMHeadModel,
    transformers.GPT2Config(vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=64),
    0,
)


def rules(model: Any) -> KeyRules:
    return KeyRules.of(model, kind_of(model))


def batch(rows: Sequence[Row], *, left: bool = False, ignore: int = 1, extra: int = 0) -> dict[str, torch.Tensor]:
    """Padded rows; the first ``ignore`` labels of each are not trained on."""
    length = max(map(len, rows)) + extra

    def padded(values: list[int], fill: int) -> list[int]:
        more = [fill] * (length - len(values))
        return more + values if left else values + more

    return {
        "input_ids": torch.tensor([padded(row, 0) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row), 0) for row in rows]),
        "labels": torch.tensor([padded([IGNORED] * ignore + row[ignore:], IGNORED) for row in rows]),
    }


def packed(rows: Sequence[Row], ignore: int = 1) -> dict[str, torch.Tensor]:
    """One row with all of them, as padding-free collators make it."""
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row]]),
        "position_ids": torch.tensor([[index for row in rows for index in range(len(row))]]),
        "labels": torch.tensor([[IGNORED if i < ignore else token for row in rows for i, token in enumerate(row)]]),
    }


def keys(inputs: dict[str, Any], model: Any = LLAMA) -> list[SequenceKey]:
    return row_keys(inputs, kind_of(model).trained_labels(inputs["labels"]), rules(model))


def states(inputs: dict[str, Any], model: Any = LLAMA) -> list[torch.Tensor]:
    """Last hidden states at each sequence's trained positions, split as the keys say."""
    labels = kind_of(model).trained_labels(inputs["labels"])
    with torch.no_grad():
        given = {name: value for name, value in inputs.items() if name != "labels"}
        hidden = model(**given, output_hidden_states=True, use_cache=False).hidden_states[-1]
    chosen = Batch({}, labels, CAUSAL_LM).of_trained(hidden)
    return list(chosen.split([part.count for part in keys(inputs, model)]))


ROWS = st.lists(st.lists(st.integers(3, 40), min_size=3, max_size=7), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, extra=st.integers(0, 3), ignore=st.integers(1, 2))
def test_every_way_to_batch_a_sequence_gives_the_same_key_and_states(rows, extra, ignore):
    alone = [keys(batch([row], ignore=ignore))[0] for row in rows]
    one_by_one = [states(batch([row], ignore=ignore))[0] for row in rows]
    unpadded = {name: value for name, value in batch(rows[:1], ignore=ignore).items() if name != "attention_mask"}
    assert keys(unpadded) == alone[:1]
    for inputs in (
        batch(rows, extra=extra, ignore=ignore),
        batch(rows, left=True, extra=extra, ignore=ignore),
        packed(rows, ignore),
    ):
        assert [part[:2] for part in keys(inputs)] == [part[:2] for part in alone]
        for together, separate in zip(states(inputs), one_by_one, strict=True):
            torch.testing.assert_close(together, separate, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(row=st.lists(st.integers(3, 40), min_size=4, max_size=7), data=st.data())
def test_another_token_or_another_trained_position_is_another_key(row, data):
    at = data.draw(st.integers(0, len(row) - 2))
    (here,) = keys(batch([row]))
    changed = [*row[:at], row[at] + 1, *row[at + 1 :]]
    assert keys(batch([changed]))[0].key != here.key
    assert keys(batch([row], ignore=2))[0].key != here.key
    assert keys(batch([[*row, 5]]))[0].key != here.key
    assert keys(batch([row[1:]]))[0].key != here.key


def test_what_follows_the_last_trained_token_does_not_count_for_a_causal_model():
    inputs = batch([[5, 6, 7, 8], [5, 6, 7, 9]])
    inputs["labels"][:, 3] = IGNORED
    one, other = keys(inputs)
    assert one.key == other.key and one.key is not None
    torch.testing.assert_close(*states(inputs))


def test_answers_do_not_count():
    inputs = batch([[5, 6, 7, 8]])
    other = {**inputs, "labels": torch.where(inputs["labels"] == 7, 9, inputs["labels"])}
    assert keys(inputs) == keys(other)


def test_learned_positions_count():
    left, right = batch([[5, 6, 7]], left=True, extra=2), batch([[5, 6, 7]], extra=2)
    assert keys(right, GPT2) == keys(batch([[5, 6, 7]]), GPT2)
    assert keys(left, GPT2) != keys(right, GPT2)
    assert not torch.allclose(states(left, GPT2)[0], states(right, GPT2)[0], atol=1e-3)


def test_rows_without_trained_tokens_are_left_out():
    inputs = batch([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    inputs["labels"][1] = IGNORED
    found = keys(inputs)
    assert [part.count for part in found] == [2, 2]
    assert [part.key for part in found] == [keys(batch([row]))[0].key for row in ([5, 6, 7], [11, 12, 13])]


def test_packed_sequences_that_see_each_other_are_one():
    inputs = packed([[5, 6, 7], [8, 9, 10, 11]])
    assert [part.count for part in keys(inputs)] == [2, 3]
    # With an attention mask beside them, transformers does not tell packed sequences apart.
    masked = {**inputs, "attention_mask": torch.ones(1, 7, dtype=torch.int64)}
    (one,) = keys(masked)
    assert one.count == 5
    other = {**masked, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, 0] = 40
    assert keys(other)[0].key != one.key
    assert not torch.allclose(states(other)[0][-1], states(masked)[0][-1], atol=1e-3)


def test_packed_sequences_pass_through_recurrent_layers():
    config = transformers.MambaConfig(vocab_size=48, hidden_size=16, num_hidden_layers=1)
    model = builders._built(transformers.MambaForCausalLM, config, 0)
    assert [part.count for part in keys(packed([[5, 6, 7], [8, 9, 10]]), model)] == [4]


@pytest.mark.parametrize("mask", [torch.ones(1, 1, 3, 3), torch.tensor([[1, 2, 2]]), torch.ones(1, 5)])
def test_masks_of_another_form_are_not_cached(mask):
    inputs = {**batch([[5, 6, 7]]), "attention_mask": mask}
    assert keys(inputs) == [SequenceKey(None, 2, 0)]


def test_a_trained_padding_token_is_not_cached():
    inputs = batch([[5, 6, 7], [5, 6, 7, 8]])
    inputs["labels"][0, 3] = 9
    assert [part.key is None for part in keys(inputs)] == [False, False]  # predicted from the last token itself
    inputs = batch([[5, 6, 7], [5, 6, 7, 8, 9]])
    inputs["labels"][0, 4] = 9
    assert [part.key is None for part in keys(inputs)] == [True, False]


def test_further_inputs_of_the_forward_count():
    inputs = batch([[5, 6, 7], [8, 9, 10, 11]])
    plain = keys(inputs)
    for name, value in (
        ("token_type_ids", torch.zeros(2, 4, dtype=torch.int64)),
        ("pixel_values", torch.rand(2, 3, 4, 4)),
        ("scale", 2.0),
    ):
        one = keys({**inputs, name: value})
        assert all(a.key != b.key and a.key is not None for a, b in zip(one, plain, strict=True))
        assert keys({**inputs, name: value}) == one
        if isinstance(value, torch.Tensor):
            changed = value.clone()
            changed[0, 0] = 1
            other = keys({**inputs, name: changed})
            assert other[0] != one[0] and other[1] == one[1]
            alone = {key: part[:1] for key, part in {**inputs, name: value}.items()}
            assert keys(alone)[0] == one[0]


def test_what_only_says_how_to_return_results_does_not_count():
    inputs = batch([[5, 6, 7]])
    assert keys({**inputs, "use_cache": False, "return_dict": True}) == keys(inputs)


@pytest.mark.parametrize("value", [torch.rand(5, 3), ["text"], {"a": 1}])
def test_inputs_that_cannot_be_told_apart_by_row_are_not_cached(value):
    inputs = {**batch([[5, 6, 7], [8, 9, 10]]), "patches": value}
    assert [part.key for part in keys(inputs)] == [None, None]


def test_images_are_told_apart_by_row_only_where_every_row_has_one():
    images = KeyRules(inputs=None, media_tokens=frozenset({40}))

    def found(rows: list[Row]) -> list[bytes | None]:
        inputs = {**batch(rows), "pixel_values": torch.rand(2, 3, 4, 4)}
        return [part.key for part in row_keys(inputs, CAUSAL_LM.trained_labels(inputs["labels"]), images)]

    assert None not in found([[40, 6, 7], [40, 8, 9]])
    assert found([[40, 40, 7], [5, 8, 9]]) == [None, None]


def test_inputs_that_the_model_does_not_take_do_not_count():
    model = builders.bert_sequences(0)
    inputs = {**builders.collate(builders.sequence_rows(3)), "colour": torch.ones(3, 2)}
    labels = SEQUENCE_CLASSIFICATION.trained_labels(inputs["labels"])
    strict = replace(rules(model), inputs=frozenset({"input_ids", "attention_mask"}))
    found = row_keys(inputs, labels, strict)
    assert found == row_keys({k: v for k, v in inputs.items() if k != "colour"}, labels, strict)
    assert [part.count for part in found] == [1, 1, 1] and len({part.key for part in found}) == 3


def test_encoder_decoders_depend_on_source_and_answer():
    model = builders.t5(0)
    source = batch([[5, 6, 7], [8, 9, 10, 11]])
    inputs = {**source, "labels": torch.tensor([[20, 21, IGNORED], [22, 23, 24]])}

    def found(changed: dict[str, Any]) -> list[SequenceKey]:
        return row_keys(changed, SEQ2SEQ_LM.trained_labels(changed["labels"]), rules(model))

    one = found(inputs)
    assert [part.count for part in one] == [2, 3] and None not in [part.key for part in one]
    alone = {name: value[:1, : 2 if name == "labels" else 3] for name, value in inputs.items()}
    assert found(alone) == one[:1]
    answers = {**inputs, "labels": torch.tensor([[29, 21, IGNORED], [22, 23, 24]])}
    assert found(answers)[0] != one[0] and found(answers)[1] == one[1]
    sources = {**inputs, "input_ids": source["input_ids"] + torch.tensor([[0], [1]])}
    assert found(sources)[0] == one[0] and found(sources)[1] != one[1]
    given = {**inputs, "decoder_input_ids": torch.tensor([[0, 20, 0], [0, 22, 23]])}
    assert found(given) == found({**given, "labels": torch.tensor([[30, 31, IGNORED], [32, 33, 34]])})


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_models_whose_positions_follow_the_batch_are_not_cached(kind, caplog):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 8}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **(factors if kind == "longrope" else {})}
    model = builders.llama(0, rope_parameters=rope)
    assert [part.key for part in keys(batch([[5, 6, 7]]), model)] == [None]
    assert kind in caplog.text
