"""The compact mode: a bound on the true KL from below, exact with the whole vocabulary, with the gradient it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muscle_hf import MuscleError
from muscle_hf.losses.divergence import kl_divergence, label_log_likelihood
from muscle_hf.teachers.cache import CompactLogits, CompactStore, compact_kl, compact_kl_and_slope

SHAPES = {
    "count": st.integers(0, 5),
    "vocabulary": st.integers(2, 30),
    "peak": st.sampled_from([0.1, 3.0, 30.0]),
    "temperature": st.sampled_from([0.5, 1.0, 2.0]),
    "seed": st.integers(0, 10**6),
}


def draw(count: int, vocabulary: int, peak: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Teacher's logits, student's and labels."""
    generator = torch.Generator().manual_seed(seed)
    teacher, student = peak * torch.randn(2, count, vocabulary, generator=generator, dtype=torch.float64)
    return teacher, student, torch.randint(vocabulary, (count,), generator=generator)


@settings(max_examples=80, deadline=None)
@given(**SHAPES)
def test_with_the_whole_vocabulary_it_is_the_true_kl(count, vocabulary, peak, temperature, seed):
    teacher, student, labels = draw(count, vocabulary, peak, seed)
    kept = CompactLogits.of(teacher, labels, vocabulary + 3, temperature)
    # What is kept is float32.
    expected = kl_divergence(teacher, student, temperature)
    torch.testing.assert_close(compact_kl(kept, student, temperature), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=80, deadline=None)
@given(**SHAPES, k=st.integers(1, 30))
def test_it_never_exceeds_the_true_kl_and_grows_with_k(count, vocabulary, peak, temperature, seed, k):
    teacher, student, labels = draw(count, vocabulary, peak, seed)
    values = [
        compact_kl(CompactLogits.of(teacher, labels, size, temperature), student, temperature)
        for size in (min(k, vocabulary), min(k + 1, vocabulary), vocabulary)
    ]
    room = 1e-5 * (1 + values[-1].abs())
    assert bool((values[0] >= -room).all())
    assert bool((values[0] <= values[1] + room).all()) and bool((values[1] <= values[2] + room).all())


@settings(max_examples=60, deadline=None)
@given(**SHAPES, k=st.integers(1, 30))
def test_the_slope_is_the_gradient(count, vocabulary, peak, temperature, seed, k):
    teacher, student, labels = draw(count, vocabulary, peak, seed)
    kept = CompactLogits.of(teacher, labels, min(k, vocabulary), temperature)
    student.requires_grad_()
    values, slope = compact_kl_and_slope(kept, student, temperature)
    values.sum().backward()
    torch.testing.assert_close(student.grad, slope / temperature, rtol=1e-6, atol=1e-6)
    assert bool(torch.isfinite(student.grad).all())


@settings(max_examples=40, deadline=None)
@given(**SHAPES, k=st.integers(1, 30))
def test_what_masks_need_is_exact(count, vocabulary, peak, temperature, seed, k):
    teacher, _, labels = draw(count, vocabulary, peak, seed)
    kept = CompactLogits.of(teacher, labels, k, temperature)
    assert torch.equal(kept.predictions, teacher.argmax(-1))
    expected = label_log_likelihood(teacher, labels).float()
    assert torch.equal(kept.label_log_likelihood, expected)


def test_a_teacher_that_says_the_same_costs_nothing():
    teacher, _, labels = draw(4, 20, 3.0, 0)
    for k in (1, 5, 20):
        kept = CompactLogits.of(teacher, labels, k, 2.0)
        torch.testing.assert_close(
            compact_kl(kept, teacher, 2.0), torch.zeros(4, dtype=torch.float64), atol=1e-6, rtol=0
        )


def test_only_the_ids_that_both_have_are_compared():
    teacher, student, labels = draw(4, 20, 3.0, 0)
    kept = CompactLogits.of(teacher, labels, 16, 2.0, vocabulary=16)
    expected = kl_divergence(teacher, student[:, :16], 2.0)
    torch.testing.assert_close(compact_kl(kept, student[:, :16], 2.0), expected, rtol=1e-5, atol=1e-6)


def test_nothing_to_keep_is_refused(tmp_path):
    teacher, _, labels = draw(2, 5, 1.0, 0)
    with pytest.raises(MuscleError, match="k is 0"):
        CompactLogits.of(teacher, labels, 0, 1.0)
    for k in (0, 6):
        with pytest.raises(MuscleError, match="between 1 and"):
            CompactStore(tmp_path, "a" * 64, k=k, temperature=1.0, vocabulary=5)
