"""Gains and regressions of scores, and the similarities behind them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle_hf import MuscleError
from muscle_hf.metrics import (
    exact_match,
    extract_gsm8k,
    extract_last_number,
    get_similarity,
    score_changes,
    score_texts,
    smooth_flip_metrics,
)

# Hundredths: sums and differences of few of them are exact enough to compare.
score = st.integers(0, 100).map(lambda x: x / 100)
pairs = st.lists(st.tuples(score, score, score), min_size=1, max_size=40)


@given(pairs, st.sampled_from([0.0, 0.05, 0.5]))
def test_agrees_with_a_count_by_hand(rows, epsilon):
    old, new, _ = map(list, zip(*rows, strict=True))
    m = smooth_flip_metrics(old, new, epsilon=epsilon)
    changes = [round(b - a, 2) for a, b in zip(old, new, strict=True)]
    gains, losses = [d for d in changes if d > epsilon], [-d for d in changes if d < -epsilon]
    assert m["pfr_smooth"] == pytest.approx(len(gains) / len(rows))
    assert m["nfr_smooth"] == pytest.approx(len(losses) / len(rows))
    assert m["m_g"] == pytest.approx(sum(gains) / len(gains) if gains else math.nan, nan_ok=True)
    assert m["m_r"] == pytest.approx(sum(losses) / len(losses) if losses else math.nan, nan_ok=True)


@given(pairs)
def test_identities(rows):
    old, new, compat = map(list, zip(*rows, strict=True))
    m, back = smooth_flip_metrics(old, new, compat_scores=compat), smooth_flip_metrics(new, old)
    gain = m["pfr_smooth"] * np.nan_to_num(m["m_g"]) - m["nfr_smooth"] * np.nan_to_num(m["m_r"])
    assert m["score_new"] - m["score_old"] == pytest.approx(gain)
    assert (m["pfr_smooth"], m["m_g"]) == pytest.approx((back["nfr_smooth"], back["m_r"]), nan_ok=True)
    assert m["pfr_smooth"] + m["nfr_smooth"] <= 1 + 1e-12
    assert m["nfr_smooth_c"] == smooth_flip_metrics(old, compat)["nfr_smooth"]
    assert m["delta_nfr_smooth_c"] == pytest.approx(m["nfr_smooth_c"] - m["nfr_smooth"])
    assert m["delta_score_c"] == pytest.approx(m["score_c"] - m["score_new"])


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.lists(st.booleans(), min_size=30, max_size=30))
def test_right_and_wrong_are_scores_of_one_and_zero(old, new):
    from muscle_hf.metrics import quadrants

    new = new[: len(old)]
    m, q = smooth_flip_metrics([float(x) for x in old], [float(x) for x in new]), quadrants(old, new)
    assert (m["nfr_smooth"], m["pfr_smooth"]) == (q.nfr, q.pfr)


def test_changes_within_the_tolerance_are_none():
    m = smooth_flip_metrics([0.5, 0.5, 0.5], [0.5625, 0.4375, 0.25], epsilon=0.0625)
    assert (m["improved"], m["regressed"], m["m_r"]) == (0, 1, 0.25)
    assert score_changes([0.5], [0.25]).tolist() == [-0.25]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smooth_flip_metrics([0.1, math.nan], [0.1, 0.2]), "position 1"),
        (lambda: smooth_flip_metrics([0.1], [math.inf]), "new_scores"),
        (lambda: smooth_flip_metrics([0.1], [0.1, 0.2]), "unequal lengths"),
        (lambda: smooth_flip_metrics([0.1], [0.1], epsilon=-1), "epsilon"),
        (lambda: smooth_flip_metrics([0.1], [0.1], epsilon=math.nan), "epsilon"),
        (lambda: score_texts(["a"], ["a", "b"]), "unequal lengths"),
        (lambda: score_texts(["a"], [[]]), "no references"),
        (lambda: score_texts(["a"], ["a"], "rogue1"), "unknown similarity 'rogue1'"),
        (lambda: score_texts(["a"], ["a"], lambda p, r: math.nan), "nan or infinite, the first at position 0"),
        (lambda: get_similarity(lambda p, r: 1.0, use_stemmer=True), "use_stemmer"),
        (lambda: exact_match("a", ["a"], extract="nothing"), "unknown answer extraction"),
        (lambda: get_similarity("bertscore"), "needs an encoder"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(MuscleError, match=message):
        call()


@pytest.mark.parametrize(
    ("text", "last", "marked"),
    [
        ("He pays 3 + 4.\n#### 7", "7", "7"),
        ("#### 1,234", "1234", "1234"),
        ("#### $5.50 in all, not 6", "6", "5.5"),
        ("#### -3\n#### 8", "8", "-3"),
        ("The answer is 12.", "12", None),
        ("about .5 of it", "0.5", None),
        ("none", None, None),
        ("", None, None),
    ],
)
def test_answers_are_found_in_text(text, last, marked):
    assert (extract_last_number(text), extract_gsm8k(text)) == (last, marked)


def test_exact_match():
    assert exact_match(" Paris ", ["London", "Paris"]) == 1.0
    assert exact_match("paris.", ["Paris"]) == 0.0
    assert exact_match("paris.", ["Paris"], ignore_case=True, ignore_punctuation=True) == 1.0
    assert exact_match("so it is 1,200", ["#### 1200"], extract="last_number") == 1.0
    assert exact_match("so it is 1200", ["#### 1200"], extract="gsm8k") == 0.0
    assert exact_match("#### 72", ["72"], extract="gsm8k") == 1.0
    assert exact_match("yes: B", ["A: B"], extract=lambda text: text[-1]) == 1.0


def test_rouge_counts_words_and_takes_the_best_reference():
    # Three of four predicted words occur among three reference words: precision 3/4, recall 1.
    assert score_texts(["the cat sat down"], ["the cat sat"], "rouge1")[0] == pytest.approx(6 / 7)
    assert score_texts(["a b c"], [["x", "a b c", "a"]], "rougeL").tolist() == [1.0]
    assert score_texts(["a b c"], ["a b d"], "rouge2")[0] == pytest.approx(1 / 2)


@pytest.mark.parametrize("name", ["bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"])
def test_similarities_lie_between_zero_and_one(name):
    text = "the quick brown fox jumps"
    assert score_texts([text], [text], name)[0] == pytest.approx(1.0)
    assert score_texts(["zzzz"], [text], name)[0] == pytest.approx(0.0, abs=0.05)


def test_a_callable_is_a_similarity():
    def judge(prediction, references):
        return len(prediction) / len(references[0])

    assert score_texts(["ab", "abc"], ["abcd", ["abcd"]], judge).tolist() == [0.5, 0.75]


@pytest.mark.slow
@pytest.mark.parametrize(("prediction", "references"), [(None, ["a"]), ("a", ["b", None]), (3, ["3"])])
def test_only_texts_have_a_similarity(prediction, references):
    with pytest.raises(MuscleError, match="item 1: predictions and references must be texts, not"):
        score_texts(["a", prediction], [["a"], references], "rouge1")


def test_bertscore_with_a_local_encoder(tmp_path):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "cat", "dog", "sat", "down"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    same, other, none = score_texts(
        ["the cat sat down", "the dog sat", ""],
        [["the dog", "the cat sat down"], "the cat sat", "the cat"],
        "bertscore",
        model=str(tmp_path),
        batch_size=2,
    )
    assert same == pytest.approx(1.0, abs=1e-5)
    assert 0 < other < 1 and none == 0
    one_by_one = score_texts(["the dog sat"], ["the cat sat"], "bertscore", model=str(tmp_path), batch_size=1)
    assert one_by_one[0] == pytest.approx(other, abs=1e-5)
