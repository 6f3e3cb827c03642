"""The compact mode: the KL over k tokens and the rest as one, in the cache and in the trainer that reads it."""

from __future__ import annotations

import builders
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muscle_hf import MuscleConfig, MuscleError
from muscle_hf.cache import Column, HiddenStore, TopTokens
from muscle_hf.objective.divergence import kl_divergence
from muscle_hf.objective.fused import kl_and_slope
from muscle_hf.pipeline.caching import cache_teachers

SHAPES = {
    "count": st.integers(0, 5),
    "vocabulary": st.integers(2, 30),
    "peak": st.sampled_from([0.1, 3.0, 30.0]),
    "temperature": st.sampled_from([0.5, 1.0, 2.0]),
    "seed": st.integers(0, 10**6),
}


def draw(count: int, vocabulary: int, peak: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher's logits and student's."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(peak * torch.randn(2, count, vocabulary, generator=generator, dtype=torch.float64))


def bucketed(form: TopTokens, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """The KL over the teacher's k likeliest tokens and one bucket for the rest, as it is defined."""
    ids = teacher[:, : form.vocabulary].topk(form.k, dim=-1).indices
    parts = []
    for logits in (teacher, student):
        log = torch.log_softmax(logits[:, : form.vocabulary] / form.temperature, dim=-1)
        rest = (1 - torch.zeros_like(log).scatter(-1, ids, 1)).log() + log
        parts.append(torch.cat([log.gather(-1, ids), rest.logsumexp(-1, keepdim=True)], dim=-1))
    ours = parts[0].exp() * (parts[0] - parts[1])
    return torch.where(parts[0].exp() > 0, ours, 0).sum(-1)


@settings(max_examples=80, deadline=None)
@given(**SHAPES, k=st.integers(1, 30))
def test_it_is_the_kl_with_the_rest_as_one_and_so_is_its_gradient(count, vocabulary, peak, temperature, seed, k):
    teacher, student = draw(count, vocabulary, peak, seed)
    form = TopTokens(min(k, vocabulary), temperature, vocabulary)
    completed = form.logits(form.of(teacher), student)
    values, slope = kl_and_slope(completed, student, temperature, True)
    room = {"rtol": 1e-5, "atol": 1e-4 if peak == 30 else 1e-5}  # what is kept is float32
    student.requires_grad_()
    expected = bucketed(form, teacher, student)
    torch.testing.assert_close(values, expected.detach(), **room)
    if form.k < vocabulary:
        expected.sum().backward()
        torch.testing.assert_close(slope / temperature, student.grad, **room)


@settings(max_examples=80, deadline=None)
@given(**SHAPES, k=st.integers(1, 30))
def test_it_never_exceeds_the_true_kl_and_reaches_it(count, vocabulary, peak, temperature, seed, k):
    teacher, student = draw(count, vocabulary, peak, seed)
    values = []
    for size in (min(k, vocabulary), min(k + 1, vocabulary), vocabulary):
        form = TopTokens(size, temperature, vocabulary)
        values.append(kl_divergence(form.logits(form.of(teacher), student), student, temperature))
    room = 1e-5 * (1 + values[-1].abs())
    assert bool((values[0] >= -room).all())
    assert bool((values[0] <= values[1] + room).all()) and bool((values[1] <= values[2] + room).all())
    torch.testing.assert_close(values[2], kl_divergence(teacher, student, temperature), rtol=1e-5, atol=1e-4)


def test_only_the_ids_that_both_have_are_compared():
    teacher, student = draw(4, 20, 3.0, 0)
    form = TopTokens(16, 2.0, 16)
    found = kl_divergence(form.logits(form.of(teacher), student), student, 2.0)
    torch.testing.assert_close(found, kl_divergence(teacher[:, :16], student, 2.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [0, 6])
def test_a_number_of_tokens_that_there_are_not_is_refused(k, tmp_path):
    with pytest.raises(MuscleError, match="between 1 and"):
        TopTokens(k, 1.0, 5)
    with pytest.raises(MuscleError, match="teacher_cache_top_k"):
        builders.trainer(tmp_path, teacher_cache=str(tmp_path / "cache"), teacher_cache_top_k=50 * k)


# ---- In the trainer ----


def models():
    return builders.with_lora(builders.llama(2), 20), builders.with_lora(builders.llama(1), 10)


def trainer(folder, rows, **changes):
    settings = {"max_steps": 4, "train_dataset": rows, "eval_dataset": rows, **changes}
    return builders.trainer(folder, *models(), **settings)


def figures(done) -> dict[str, float]:
    return {name: value for name, value in done.evaluate().items() if builders.is_figure(name)}


@pytest.fixture
def rows():
    return builders.half_right(builders.rows(ignore=0), models()[0])


def test_with_every_token_kept_a_run_is_the_exact_one(rows, tmp_path):
    exact = trainer(tmp_path / "1", rows)
    exact.train()
    expected = figures(exact)
    for turn in ("2", "3"):  # filled while training, then read
        settings = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_top_k": builders.VOCABULARY}
        compact = trainer(tmp_path / turn, rows, **settings)
        compact.train()
        for name, value in figures(compact).items():
            assert value == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
        weights = dict(exact.model.named_parameters())
        for name, weight in compact.model.named_parameters():
            torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=2e-4)


def test_fewer_tokens_take_less_room_and_see_less_and_no_teacher_runs_again(rows, tmp_path):
    folder, settings = tmp_path / "cache", {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_top_k": 3}
    filled = cache_teachers(trainer(tmp_path / "1", rows, teacher_cache_top_k=3), folder)
    assert all("-top3-T2-V48" in found.folder for found in filled.values())
    compact = trainer(tmp_path / "2", rows, **settings)
    for teacher in compact.teachers.values():
        teacher.logits = lambda inputs: pytest.fail("a teacher ran")
    seen, exact = figures(compact), figures(trainer(tmp_path / "3", rows))
    assert 0 < seen["eval_kl_old"] < exact["eval_kl_old"]
    assert seen["eval_token_accuracy"] == exact["eval_token_accuracy"]
    compact.train()
    for store in [source.store for source in compact._step.sources.values()]:
        assert store.columns == {"hidden": Column(torch.float32, (7,))}
    assert compact.provenance.training["teacher_cache_top_k"] == 3
    # Another temperature is another cache, and the exact one is beside it.
    assert len(trainer(tmp_path / "4", rows, temperature=1.0, **settings)._step.sources["old"].store) == 0
    exact_store = HiddenStore(folder, compact._step.sources["old"].store.fingerprint)
    assert len(exact_store) == 0


@pytest.mark.parametrize(
    "more",
    [{"mask": "old_right"}, {"divergence": "logit_difference"}, {"blend": "logits", "mask": "always_old"}],
    ids=lambda more: next(iter(more)),
)
def test_what_needs_more_than_probabilities_is_refused(more, tmp_path):
    settings = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_top_k": 4, **more}
    with pytest.raises(MuscleError, match=r"teacher_cache_top_k=4 .*use the exact cache"):
        builders.trainer(tmp_path, *models(), **settings)


def test_a_top_k_below_one_is_refused(tmp_path):
    with pytest.raises(MuscleError, match="must be >= 1"):
        MuscleConfig(str(tmp_path), teacher_cache_top_k=0)
