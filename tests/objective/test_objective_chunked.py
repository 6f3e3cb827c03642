"""The chunked objective is the plain one: values and gradients, for every mask, chunk size and head."""

from __future__ import annotations

import contextlib
from dataclasses import fields

import builders
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from muscle_hf.objective import MASK_NAMES, MASKS, Objective, TokenTerms, resolve_mask
from muscle_hf.objective.chunked import Chunks, Stream, chunk_rows
from muscle_hf.objective.divergence import DIVERGENCES, Divergence
from muscle_hf.objective.objective import BLENDS
from muscle_hf.teachers.head import Head

pytestmark = pytest.mark.filterwarnings("ignore:.*unstable without the auxiliary cross-entropy")


def half_and_half(student, old, new, labels):
    """A mixture: every token follows both models."""
    return torch.sigmoid(old.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - student.amax(-1))


def longer_half(student, old, new, labels, sequence_ids):
    """Decides over whole sequences, from all three models."""
    votes = (old.argmax(-1) == labels).double() - (new.argmax(-1) == student.argmax(-1)).double()
    totals = torch.zeros(4, dtype=torch.double).index_add_(0, sequence_ids, votes)
    return (totals >= 0)[sequence_ids]


def soft_cap(logits):
    return 3 * torch.tanh(logits / 3)


def world(seed, count, vocabulary, padded=0, cap=False, dtype=torch.float64, width=7):
    """Three streams over random heads; about half of the student's and the old model's tokens are right."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    labels = torch.randint(0, vocabulary, (count,), generator=random)
    streams = {}
    for name, size in (("student", vocabulary), ("old", vocabulary + padded), ("new", vocabulary)):
        weight = normal(size, width)
        toward = weight[labels] * (torch.rand(count, 1, generator=random) < 0.5)
        post = soft_cap if cap else nn.Identity()
        streams[name] = Stream(normal(count, width) + toward, lambda h, w=weight, p=post: p(h @ w.T))
    sequences = torch.sort(torch.randint(0, 4, (count,), generator=random)).values
    return streams, labels, sequences


def plain(objective, streams, labels, sequences, labelled=None):
    hidden = streams["student"].hidden.detach().clone().requires_grad_()
    logits = [streams["student"].head(hidden), *(streams[n].head(streams[n].hidden) for n in ("old", "new"))]
    terms = objective(*logits, labels, sequences, labelled)
    terms.loss.sum().backward()
    return terms, hidden.grad


def chunked(objective, streams, labels, sequences, chunk_size, weights=None, **options):
    hidden = streams["student"].hidden.detach().clone().requires_grad_()
    streams = {**streams, "student": Stream(hidden, streams["student"].head)}
    terms = Chunks(objective, labels, sequences, chunk_size, **options).terms(streams, weights)
    terms.loss.sum().backward()
    return terms, hidden.grad


def assert_same(one, other, rel):
    for column in fields(TokenTerms):
        torch.testing.assert_close(getattr(one[0], column.name), getattr(other[0], column.name), rtol=rel, atol=rel)
    torch.testing.assert_close(one[1], other[1], rtol=rel, atol=rel)


masks = st.sampled_from([*MASK_NAMES, half_and_half, longer_half])


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 40),
    vocabulary=st.integers(2, 23),
    chunk_size=st.integers(1, 50),
    mask=masks,
    lam=st.sampled_from([1.0, 0.6]),
    smoothing=st.sampled_from([0.0, 0.1]),
    squared=st.booleans(),
    temperature=st.floats(0.3, 5),
    padded=st.sampled_from([0, 3]),
    cap=st.booleans(),
    unlabelled=st.sampled_from([None, "always_old", "mean(0.3)", "more_confident", "more_confident_sequence"]),
    divergence=st.sampled_from(DIVERGENCES),
    blend=st.sampled_from(BLENDS),
)
def test_any_chunk_size_gives_the_plain_values_and_gradient(
    seed,
    count,
    vocabulary,
    chunk_size,
    mask,
    lam,
    smoothing,
    squared,
    temperature,
    padded,
    cap,
    unlabelled,
    divergence,
    blend,
):
    objective = Objective(
        temperature,
        resolve_mask(mask),
        lam,
        squared,
        smoothing if lam < 1 else 0.0,
        transfer_mask=resolve_mask(unlabelled or "mean"),
        divergence=divergence,
        blend=blend,
    )
    case = world(seed, count, vocabulary, padded, cap)
    labelled = None if unlabelled is None else case[2] % 2 == 0
    expected = plain(objective, *case, labelled)
    # Squares of log-probabilities are larger than divergences, and so are their rounding errors.
    exact = 1e-12 if divergence == "kl" else 1e-10
    assert_same(chunked(objective, *case, chunk_size, labelled=labelled), expected, exact)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
@pytest.mark.parametrize("padded", [0, 3, -3])
def test_the_gradient_made_by_hand_is_autograds(padded, temperature):
    random = torch.Generator().manual_seed(0)
    teacher = 4 * torch.randn(20, 50 + padded, generator=random, dtype=torch.float64)
    student = 4 * torch.randn(20, 50, generator=random, dtype=torch.float64)
    weights, found = torch.rand(20, generator=random, dtype=torch.float64), []
    for fast in (True, False):
        leaf = student.clone().requires_grad_()
        values = Divergence("kl", temperature, fast)(teacher, leaf)
        (gradient,) = torch.autograd.grad((values * weights).sum(), leaf)
        found.append((values.detach(), gradient))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mask", reference.MASK_NAMES)
def test_relative_error_in_float32(mask):
    objective = Objective(mask=MASKS[mask], compatibility_weight=0.7)
    case = world(3, 200, 997, dtype=torch.float32)
    got, expected = chunked(objective, *case, 33), plain(objective, *case)
    assert got[0].loss.dtype == torch.float32
    torch.testing.assert_close(got[0].loss.sum(), expected[0].loss.sum(), rtol=1e-5, atol=0)
    assert (got[1] - expected[1]).norm() < 1e-5 * expected[1].norm()


def test_a_token_weighted_afterwards_gets_its_own_gradient():
    case = world(5, 12, 9)
    weights = torch.linspace(0, 1, 12, dtype=torch.float64)
    grads = []
    for whole in (True, False):
        hidden = case[0]["student"].hidden.clone().requires_grad_()
        streams = {**case[0], "student": Stream(hidden, case[0]["student"].head)}
        if whole:
            logits = [streams[n].head(streams[n].hidden) for n in ("student", "old", "new")]
            terms = Objective()(*logits, *case[1:])
        else:
            terms = Chunks(Objective(), *case[1:], 5).terms(streams)
        (terms.loss * weights).sum().backward()
        grads.append(hidden.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_kl_to_an_equal_teacher_and_its_gradient_are_exactly_zero():
    streams, labels, sequences = world(6, 30, 17, dtype=torch.float32)
    streams["old"] = streams["new"] = streams["student"]
    terms, gradient = chunked(Objective(), streams, labels, sequences, 7)
    assert terms.loss.tolist() == [0.0] * 30
    assert not gradient.any()


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("mask", [*MASK_NAMES, longer_half])
def test_weights_found_beforehand_change_nothing(mask, labelled):
    objective = Objective(mask=resolve_mask(mask), transfer_mask=resolve_mask("more_confident_sequence"))
    case = world(7, 33, 13)
    labelled = None if labelled else case[2] > 1
    weights = Chunks(objective, *case[1:], 5, labelled=labelled).weights(case[0])
    got = chunked(objective, *case, 8, weights=weights, labelled=labelled)
    assert_same(got, plain(objective, *case, labelled), 1e-12)


def test_a_teacher_is_asked_only_for_tokens_that_follow_it():
    streams, labels, sequences = world(8, 40, 11)
    asked = {"old": [], "new": []}
    for name, rows in asked.items():
        number = torch.arange(40.0, dtype=torch.float64).unsqueeze(1)
        head = streams[name].head

        def watched(hidden, head=head, rows=rows):
            rows.extend(hidden[:, -1].int().tolist())
            return head(hidden[:, :-1])

        streams[name] = Stream(torch.cat([streams[name].hidden, number], dim=1), watched)
    terms, _ = chunked(Objective(), streams, labels, sequences, 6)
    follows_old = terms.weight_old.nonzero().squeeze(-1).tolist()
    assert 0 < len(follows_old) < 40
    assert sorted(asked["old"]) == follows_old
    assert sorted(asked["old"] + asked["new"]) == list(range(40))


@pytest.mark.parametrize("mask", ["student_wrong", "old_right", "old_likelier_sequence"])
def test_logits_that_are_not_finite_are_shown(mask):
    streams, labels, sequences = world(8, 40, 11)
    shown = []
    broken = streams["old"].head
    streams["old"] = Stream(streams["old"].hidden, lambda h: broken(h) + torch.tensor(float("nan")))
    chunked(
        Objective(mask=MASKS[mask]), streams, labels, sequences, 6,
        inspect=lambda name, logits, which: shown.append((name, bool(logits.isnan().any()))),
    )  # fmt: skip
    assert ("old", True) in shown


def test_no_gradient_is_made_where_none_is_wanted():
    streams, labels, sequences = world(9, 10, 11)
    calls = []
    watched = Stream(streams["student"].hidden, lambda h: calls.append(h.requires_grad) or streams["student"].head(h))
    with torch.no_grad():
        terms = Chunks(Objective(), labels, sequences, chunk_rows(11)).terms({**streams, "student": watched})
    assert calls == [False]
    assert not terms.loss.requires_grad


def test_the_chunk_fits_its_budget():
    assert chunk_rows(128_256) == 256, "fewer rows would make a CPU's matrix products slow"
    assert chunk_rows(1000) * 1000 * 4 <= 2 * 2**20 < (chunk_rows(1000) + 1) * 1000 * 4
    assert chunk_rows(128_256, "cuda") * 128_256 * 4 <= 512 * 2**20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_near_as_the_plain_way(dtype):
    """Against float64; the loss is scaled up afterwards, as a gradient scaler does for float16."""
    exact_case = world(11, 64, 301, width=32)
    streams, labels, sequences = exact_case
    _, exact = plain(Objective(compatibility_weight=0.5), *exact_case)

    def in_half(stream):
        # A head in half precision over the same weights, its logits in float32.
        weight = stream.head(torch.eye(32, dtype=torch.float64)).T.to(dtype)
        return Stream(stream.hidden.to(dtype), lambda h: (h @ weight.T).float())

    halves = {name: in_half(stream) for name, stream in streams.items()}
    errors = {}
    for way in ("plain", "chunked"):
        hidden = halves["student"].hidden.clone().requires_grad_()
        parts = {**halves, "student": Stream(hidden, halves["student"].head)}
        if way == "plain":
            logits = [stream.head(stream.hidden) for stream in parts.values()]
            terms = Objective(compatibility_weight=0.5)(*logits, labels, sequences)
        else:
            terms = Chunks(Objective(compatibility_weight=0.5), labels, sequences, 7).terms(parts)
        (terms.loss.sum() * 512).backward()
        assert hidden.grad.dtype is dtype
        errors[way] = ((hidden.grad.double() / 512 - exact).norm() / exact.norm()).item()
    assert errors["plain"] > 0
    assert errors["chunked"] < 1.5 * errors["plain"]


def test_small_gradients_survive_a_head_that_autocast_runs_in_float16():
    """As with fp16=True: weights and hidden states in float32, the output layer in float16, a scaled loss."""
    model = builders.llama(1, vocab_size=131_072)
    torch.manual_seed(0)
    hidden = 2 * torch.randn(16, 16)
    teacher = hidden + 0.01 * torch.randn(16, 16)
    labels, sequences = torch.randint(131_072, (16,)), torch.arange(16)
    gradients = []
    for autocast in (contextlib.nullcontext, lambda: torch.autocast("cpu", torch.float16)):
        head, student = Head(model, autocast), hidden.clone().requires_grad_()
        other = Stream(teacher, head)
        streams = {"student": Stream(student, head), "old": other, "new": other}
        terms = Chunks(Objective(mask=MASKS["always_new"]), labels, sequences, 8).terms(streams)
        (terms.loss.mean() * 2.0**16).backward()
        gradients.append(student.grad)
    exact, found = gradients
    # The logits' own rounding to float16 makes 0.05 of it.
    assert ((found - exact).norm() / exact.norm()).item() < 0.07
