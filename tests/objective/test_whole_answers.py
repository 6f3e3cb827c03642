"""What a teacher says of whole answers: one number (X4), or the probabilities of several (X3)."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muscle_hf.objective import Objective, TokenTerms, resolve_mask
from muscle_hf.objective.chunked import Chunks, Stream
from muscle_hf.objective.whole_answers import FLOOR, AnswerStream, ChoiceStream, along_choices

V = 9


def world(seed, rows=4, context=True, dtype=torch.float64):
    """A student and v2 over random heads, v1's number for each row but the last, and contexts in no answer."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 4, (rows,), generator=random) + (2 if context else 0)
    rows_of = torch.repeat_interleave(torch.arange(rows), lengths)
    places = torch.cat([torch.arange(int(length)) for length in lengths])
    count = len(rows_of)
    spoken = (places >= (2 if context else 0)) & (rows_of < rows - 1)
    weight = torch.randn(V, 5, generator=random, dtype=torch.float64).to(dtype)
    streams = {
        name: Stream(torch.randn(count, 5, generator=random, dtype=torch.float64).to(dtype), lambda h: h @ weight.T)
        for name in ("student", "new")
    }
    tokens = torch.randint(0, V, (count,), generator=random)
    numbers = -3 * torch.rand(rows, generator=random, dtype=torch.float64).to(dtype)
    streams["old"] = AnswerStream(numbers[rows_of], None, tokens, rows_of, spoken)
    return streams, tokens, rows_of, spoken, numbers


def evaluated(streams, tokens, rows, spoken, chunk, hidden=None, **settings):
    hidden = (streams["student"].hidden if hidden is None else hidden).detach().clone().requires_grad_()
    objective = Objective(transfer_mask=resolve_mask("mean(0.3)"), **settings)
    if chunk is None:
        student = Stream(streams["student"].head(hidden), None)
    else:
        student = replace(streams["student"], hidden=hidden)
    silent = torch.stack([~spoken, torch.zeros_like(spoken)], dim=-1)
    terms = Chunks(objective, tokens, rows, chunk, silent=silent).terms({**streams, "student": student})
    terms.loss.sum().backward()
    return terms, hidden.grad


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    chunk=st.sampled_from([None, 1, 2, 5, 100]),
    mask=st.sampled_from(["student_wrong", "mean", "mean(0.8)", "always_old", "always_new"]),
    temperature=st.sampled_from([0.7, 1.0, 2.0]),
    context=st.booleans(),
)
def test_the_loss_is_that_of_the_equation(seed, chunk, mask, temperature, context):
    streams, tokens, rows, spoken, numbers = case = world(seed, context=context)
    terms, _ = evaluated(*case[:4], chunk, mask=resolve_mask(mask), temperature=temperature)
    student, new = (streams[name].head(streams[name].hidden).numpy() for name in ("student", "new"))
    says = resolve_mask(mask)(torch.tensor(student), None, None, tokens, rows)[:, 0].numpy()
    answers = np.where(spoken, rows, -1)
    old = {number: float(value) for number, value in enumerate(numbers)}
    expected = reference.loss_of_answers(student, old, new, tokens.numpy(), answers, says, temperature)
    assert float(terms.loss.detach().sum()) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("chunk", [None, 2, 100])
@pytest.mark.parametrize("mask", ["student_wrong", "mean"])
def test_the_gradient_is_that_of_the_value(chunk, mask):
    case = world(3)
    how = {"mask": resolve_mask(mask), "compatibility_weight": 0.7}
    _, gradient = evaluated(*case[:4], chunk, **how)
    hidden, step = case[0]["student"].hidden, 1e-6
    found = torch.zeros_like(hidden)
    for place in np.ndindex(*hidden.shape):
        ends = []
        for sign in (1, -1):
            moved = hidden.clone()
            moved[place] += sign * step
            ends.append(evaluated(*case[:4], chunk, moved, **how)[0].loss.detach().sum())
        found[place] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(gradient, found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("both", [False, True])
def test_chunks_are_the_whole(both):
    case = world(5)
    if both:
        case[0]["new"] = replace(case[0]["old"], hidden=case[0]["old"].hidden - 1)
    found = [evaluated(*case[:4], chunk, mask=resolve_mask("student_wrong")) for chunk in (None, 1, 3, 100)]
    for terms, gradient in found[1:]:
        for column in fields(TokenTerms):
            name = column.name
            torch.testing.assert_close(getattr(terms, name), getattr(found[0][0], name), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-12, atol=1e-12)


def test_the_students_head_is_asked_once_about_answers_and_never_about_contexts():
    """Beside the pass that makes the gradient, which sees all tokens."""
    case, seen = world(2), []
    head = case[0]["student"].head
    case[0]["new"] = replace(case[0]["old"], hidden=case[0]["old"].hidden - 1)
    case[0]["student"] = replace(case[0]["student"], head=lambda hidden: (seen.append(len(hidden)), head(hidden))[1])
    evaluated(*case[:4], 100, mask=resolve_mask("mean"))
    assert sorted(seen) == sorted([int(case[3].sum()), len(case[1])])


@pytest.mark.parametrize("old", [-1e-9, -1e-4, -80.0, -1e4])
@pytest.mark.parametrize("gap", [40.0, 9.0, -80.0])
def test_extreme_likelihoods_stay_finite(old, gap):
    """Also where float32 holds the student to be certain."""
    tokens, first = torch.tensor([1]), torch.tensor([0])
    stream = AnswerStream(torch.tensor([old]), None, tokens, first, torch.tensor([True]))
    leaf = torch.tensor([[0.0, gap]], requires_grad=True)
    new = Stream(leaf.detach(), None)
    objective = Objective(mask=resolve_mask("always_old"))
    streams = {"student": Stream(leaf, None), "old": stream, "new": new}
    terms = Chunks(objective, tokens, first, None).terms(streams)
    terms.loss.sum().backward()
    assert bool(torch.isfinite(terms.loss).all()) and float(leaf.grad.abs().max()) <= 1.01


# ---- Choices ----

tries = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6, unique=True
).map(lambda choices: [(*choice, V - 1) for choice in choices])


@settings(max_examples=100, deadline=None)
@given(choices=tries, seed=st.integers(0, 1000), spread=st.sampled_from([1.0, 30.0]))
def test_the_product_along_a_choice_is_its_share(choices, seed, spread):
    scores = spread * np.random.default_rng(seed).standard_normal(len(choices))
    shares = reference.softmax(scores)
    for choice, share in zip(choices, shares, strict=True):
        along = along_choices(choices, scores.tolist(), choice)
        product = sum(options[token] for options, token in zip(along, choice, strict=True))
        assert product == pytest.approx(np.log(share), abs=1e-6)
        if spread == 1:
            expected = reference.choice_targets(choices, shares, choice, V)
            found = np.array([[np.exp(options.get(u, FLOOR)) for u in range(V)] for options in along])
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_stream_of_choices_is_their_distribution_and_the_students_where_nothing_is_known():
    known = [{2: np.log(0.25), 5: np.log(0.75)}, {0: 0.0}]
    tokens, scores = torch.tensor([[2, 5], [0, 0], [0, 0]]), torch.full((3, 2), FLOOR)
    for place, options in enumerate(known):
        scores[place, : len(options)] = torch.tensor(list(options.values()))
    stream = ChoiceStream(scores, None, tokens, torch.tensor([True, True, False]))
    student = torch.randn(3, V, dtype=torch.float64)
    expected = torch.zeros(2, V, dtype=torch.float64)
    expected[0, 2], expected[0, 5], expected[1, 0] = 0.25, 0.75, 1
    found = stream.logits(slice(0, 3), student)
    torch.testing.assert_close(found[:2].softmax(-1), expected, atol=1e-7, rtol=1e-7)
    assert torch.equal(found[2], student[2]) and stream.leans
    torch.testing.assert_close(stream.logits(torch.tensor([1]), student, torch.tensor([1])), found[1:2])
