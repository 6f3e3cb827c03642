"""encode_pair: where the continuation begins, as in lm-evaluation-harness."""

from __future__ import annotations

import pytest
from evaluation_models import make_model, make_tokenizer

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import encode_pair, encode_pairs

PAIRS = [
    ("Question: where?\nAnswer:", " the shop"),
    ("Question: where?\nAnswer: ", "the shop"),
    ("ends with lines\n\n", "0 1 2"),
    ("<s>already opened", " text"),
    ("the inv", "oice and the shop"),
    ("", "no prompt"),
    ("émile", " çà"),
]


@pytest.mark.parametrize("bos", [True, False])
def test_agrees_with_the_harness(bos):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    tokenizer = make_tokenizer(bos=bos)
    harness = huggingface.HFLM(pretrained=make_model(), tokenizer=tokenizer)
    for prompt, continuation in PAIRS:
        if prompt:
            assert encode_pair(tokenizer, prompt, continuation) == harness._encode_pair(prompt, continuation)
    prefix = tokenizer.bos_token_id if bos else tokenizer.eos_token_id
    assert encode_pair(tokenizer, "", "no prompt")[0] == [prefix]
    assert harness.prefix_token_id == prefix


def test_batched_is_the_same_as_single():
    tokenizer = make_tokenizer()
    assert encode_pairs(tokenizer, PAIRS * 2) == [encode_pair(tokenizer, *pair) for pair in PAIRS * 2]


def test_both_parts_together_are_the_text():
    tokenizer = make_tokenizer()
    for prompt, continuation in PAIRS[:3]:
        context, rest = encode_pair(tokenizer, prompt, continuation)
        assert context + rest == tokenizer(prompt + continuation)["input_ids"]


def test_an_appended_eos_does_not_stand_between_prompt_and_continuation():
    plain, closing = make_tokenizer(), make_tokenizer(closing=True)
    for prompt, continuation in PAIRS[:3]:
        assert encode_pair(closing, prompt, continuation) == encode_pair(plain, prompt, continuation)


def test_a_continuation_without_tokens_is_refused():
    with pytest.raises(MuscleError, match="adds no tokens"):
        encode_pair(make_tokenizer(), "prompt", "")


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(MuscleError, match="ud83d"):
        encode_pair(make_tokenizer(), "half of a \ud83d", " sign")
