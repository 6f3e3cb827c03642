"""The objective agrees with the paper's equations, written out in float64, for every mask and setting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from muscle_hf import MuscleError
from muscle_hf.objective import MASKS, Objective, kl_divergence, resolve_mask
from muscle_hf.objective.sums import mean_terms, sum_terms

# What the warning says is true, and not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*unstable without the auxiliary cross-entropy")


def random_tokens(seed: int, count: int, vocabulary: int = 11, scale: float = 4.0):
    random = np.random.default_rng(seed)
    student, old, new = (random.normal(0, scale, (count, vocabulary)) for _ in range(3))
    labels = random.integers(0, vocabulary, count)
    # Half of the tokens are right, so that every mask takes both values.
    for logits in (student, old):
        right = random.random(count) < 0.5
        logits[right, labels[right]] = logits[right].max(-1) + 0.3
    return student, old, new, labels, np.sort(random.integers(0, 3 if count > 8 else 2, count))


def evaluate(objective: Objective, student, old, new, labels, sequences):
    leaf = torch.tensor(student, requires_grad=True)
    terms = objective(leaf, *(torch.tensor(part) for part in (old, new, labels, sequences)))
    return leaf, terms


def test_every_mask_of_the_ablation_has_a_name():
    assert tuple(MASKS)[: len(reference.MASK_NAMES)] == reference.MASK_NAMES


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("lam", [1.0, 0.3])
@pytest.mark.parametrize("mask", reference.MASK_NAMES)
def test_loss_is_the_papers(mask, lam, squared):
    for seed, temperature in ((1, 2.0), (2, 0.7), (3, 5.0)):
        tokens = random_tokens(seed, 17)
        student, old, new, labels, sequences = tokens
        objective = Objective(temperature, MASKS[mask], lam, squared)
        _, terms = evaluate(objective, *tokens)
        m = reference.mask_of(mask, student, old, labels, sequences)
        expected = reference.loss(student, old, new, labels, m, temperature=temperature, lam=lam, squared=squared)
        assert mask == "always_old" or 0 < m.sum() < len(m), "the example must exercise both sides"
        assert terms.weight_old.tolist() == m.tolist()
        assert terms.loss.sum().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lam", [1.0, 0.4])
def test_gradient_is_the_derivative_of_the_papers_loss(lam):
    tokens = random_tokens(5, 6, vocabulary=5)
    student, old, new, labels, sequences = tokens
    leaf, terms = evaluate(Objective(compatibility_weight=lam), *tokens)
    terms.loss.sum().backward()
    m = reference.mask_of("student_wrong", student, old, labels, sequences)
    step = 1e-6
    for index in np.ndindex(student.shape):
        moved = [student.copy(), student.copy()]
        for sign, copy in zip((1, -1), moved, strict=True):
            copy[index] += sign * step
        high, low = (reference.loss(copy, old, new, labels, m, lam=lam) for copy in moved)
        assert leaf.grad[index].item() == pytest.approx((high - low) / (2 * step), abs=1e-7)


def test_label_smoothing_is_of_the_cross_entropy_alone():
    tokens = random_tokens(7, 9)
    student, old, new, labels, sequences = tokens
    _, terms = evaluate(Objective(compatibility_weight=0.5, label_smoothing=0.2), *tokens)
    m = reference.mask_of("student_wrong", student, old, labels, sequences)
    assert terms.loss.sum().item() == pytest.approx(
        reference.loss(student, old, new, labels, m, lam=0.5, smoothing=0.2), rel=1e-12
    )


@pytest.mark.parametrize("lam", [1.0, 0.5])
@pytest.mark.parametrize("mask", reference.MASK_NAMES)
def test_one_token_and_none(mask, lam):
    for count in (1, 0):
        tokens = random_tokens(4, count)
        leaf, terms = evaluate(Objective(mask=MASKS[mask], compatibility_weight=lam), *tokens)
        m = reference.mask_of(mask, tokens[0], tokens[1], tokens[3], tokens[4])
        expected = reference.loss(*tokens[:4], m, lam=lam)
        assert terms.loss.shape == (count,)
        assert terms.loss.sum().item() == pytest.approx(expected, rel=1e-12)
        terms.loss.sum().backward()
        assert torch.isfinite(leaf.grad).all()


def test_ties_go_to_the_lower_index_and_to_v2():
    labels = np.array([0, 1, 1])
    student = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    _, terms = evaluate(Objective(), student, student + 1, student, labels, np.array([0, 0, 1]))
    assert terms.weight_old.tolist() == [0.0, 1.0, 0.0], "argmax takes the first of equals, as NumPy's does"
    assert terms.correct.tolist() == [1.0, 0.0, 1.0]
    for mask in ("old_likelier", "old_likelier_sequence"):
        # Equal probabilities: v1 does not give more, so the new model is followed.
        _, terms = evaluate(Objective(mask=MASKS[mask]), student, student, student, labels, np.array([0, 0, 1]))
        assert terms.weight_old.tolist() == [0.0, 0.0, 0.0]


def test_kl_is_exactly_zero_for_equal_logits_in_every_precision():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        logits = torch.randn(64, 301, dtype=torch.float32).to(dtype) * 8
        assert kl_divergence(logits, logits.clone(), 2.0).tolist() == [0.0] * 64


@given(st.integers(0, 10_000), st.floats(0.1, 10), st.integers(1, 12))
def test_kl_is_never_negative_and_is_the_papers(seed, temperature, count):
    student, old, *_ = random_tokens(seed, count)
    values = kl_divergence(torch.tensor(old), torch.tensor(student), temperature)
    expected = [reference.kl(z_1, z_c, temperature) for z_1, z_c in zip(old, student, strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert (values > -1e-12).all()


def test_padding_columns_of_one_model_are_left_out_of_the_kl():
    student, old, new, labels, sequences = random_tokens(8, 7)
    padded = np.concatenate([old, np.full((7, 5), 3.0)], axis=1)
    _, terms = evaluate(Objective(mask=MASKS["always_old"]), student, padded, new, labels, sequences)
    _, plain = evaluate(Objective(mask=MASKS["always_old"]), student, old, new, labels, sequences)
    assert torch.equal(terms.loss, plain.loss)


# ---- Masks of one's own ----


def half(student, old, new, labels):
    return torch.full(labels.shape, 0.25)


def first_sequence(student, old, new, labels, sequence_ids):
    return sequence_ids == 0


def test_own_mixture_weighs_both_kls():
    tokens = random_tokens(9, 8)
    _, terms = evaluate(Objective(mask=resolve_mask(half)), *tokens)
    assert terms.loss.sum().item() == pytest.approx(reference.loss(*tokens[:4], np.full(8, 0.25)), rel=1e-12)


def test_own_boolean_mask_by_import_path_and_by_sequence():
    tokens = random_tokens(10, 8)
    mask = resolve_mask(f"{__name__}:first_sequence")
    _, terms = evaluate(Objective(mask=mask), *tokens)
    assert terms.weight_old.tolist() == (tokens[4] == 0).astype(float).tolist()
    assert mask.name == f"{__name__}:first_sequence"


def test_own_mask_gets_the_logits_of_the_trained_tokens_without_gradient():
    seen = {}

    def spy(student, old, new, labels):
        seen.update(student=student, old=old, new=new, labels=labels)
        return labels > 0

    tokens = random_tokens(11, 8)
    evaluate(Objective(mask=resolve_mask(spy)), *tokens)
    assert not seen["student"].requires_grad
    for name, part in zip(("student", "old", "new", "labels"), tokens, strict=False):
        assert np.array_equal(seen[name].numpy(), part)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda student, old, new: None, "must be a function"),
        (lambda student, old, new, labels, more: None, "must be a function"),
        ("nonsense", "unknown mask 'nonsense'; choose one of student_wrong"),
        ("no.such.module:mask", "cannot be imported"),
        ("muscle_hf.objective.masks:nothing", "cannot be imported"),
    ],
)
def test_mask_that_cannot_be_used_is_refused_at_once(mask, message):
    with pytest.raises(MuscleError, match=message):
        resolve_mask(mask)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            lambda labels: torch.ones(len(labels), 2),
            r"returned \(8, 2\); expected a tensor of shape \(8,\) or \(8, 3\)",
        ),
        (lambda labels: torch.full((len(labels), 3), -0.1), "below 0"),
        (lambda labels: [True] * len(labels), "returned list"),
        (lambda labels: torch.full(labels.shape, 1.5), r"outside \[0, 1\]"),
        (lambda labels: torch.full(labels.shape, -0.1), r"outside \[0, 1\]"),
        (lambda labels: torch.full(labels.shape, math.nan), "nan"),
    ],
)
def test_weights_that_are_not_weights_are_refused(weights, message):
    mask = resolve_mask(lambda student, old, new, labels: weights(labels))
    with pytest.raises(MuscleError, match=message):
        evaluate(Objective(mask=mask), *random_tokens(12, 8))


# ---- Logged figures ----


def test_means_are_over_the_tokens_they_speak_of_and_add_up_over_batches():
    tokens = random_tokens(13, 20)
    student, old, new, labels, sequences = tokens
    _, terms = evaluate(Objective(compatibility_weight=0.6), *tokens)
    m = reference.mask_of("student_wrong", student, old, labels, sequences)
    figures = mean_terms(sum_terms(terms, torch.tensor(sequences), 3).sum(0))
    kl_old = [reference.kl(old[i], student[i], 2) for i in range(20) if m[i]]
    kl_new = [reference.kl(new[i], student[i], 2) for i in range(20) if not m[i]]
    assert figures["loss"] == pytest.approx(reference.loss(student, old, new, labels, m, lam=0.6) / 20)
    assert figures["kl_old"] == pytest.approx(np.mean(kl_old))
    assert figures["kl_new"] == pytest.approx(np.mean(kl_new))
    assert figures["ce"] == pytest.approx(reference.loss(student, old, new, labels, m, lam=0) / 20)
    assert figures["share_old"] == pytest.approx(m.mean())
    assert figures["token_accuracy"] == pytest.approx(1 - m.mean())
    rows = sum_terms(terms, torch.tensor(sequences), 3)
    assert mean_terms(rows[:2].sum(0) + rows[2]) == pytest.approx(figures)


def test_a_mean_over_nothing_is_left_out():
    _, terms = evaluate(Objective(mask=MASKS["always_old"]), *random_tokens(14, 5))
    figures = mean_terms(sum_terms(terms, torch.zeros(5, dtype=torch.int64), 1).sum(0))
    assert figures.keys() == {"loss", "kl_old", "ce", "share_old", "token_accuracy"}
    assert figures["share_old"] == 1
    assert mean_terms(torch.zeros(9)) == {}
