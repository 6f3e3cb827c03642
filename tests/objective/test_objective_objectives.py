"""The objectives beyond the paper's, against their equations written out in NumPy; rows without labels."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from test_objective import evaluate, random_tokens

from muscle_hf import MuscleError
from muscle_hf.objective import MASK_NAMES, Objective, resolve_mask
from muscle_hf.objective.divergence import TOP_TOKENS, kl_divergence, logit_difference

pytestmark = pytest.mark.filterwarnings("ignore:.*unstable without the auxiliary cross-entropy")

NAMES = (
    "old_right_student_wrong", "dissonance", "label_likelihood", "sequence_likelihood", "always_new", "more_confident",
    "more_confident_sequence", "focal", "focal(0.5, 2)", "margin(0.4)", "mean", "mean(0.65)",
)  # fmt: skip


def cross_entropy(student, labels):
    return np.array([-np.log(reference.softmax(z)[y]) for z, y in zip(student, labels, strict=True)])


def test_every_name_is_tested():
    tested = {name.split("(")[0] for name in NAMES} | set(reference.MASK_NAMES)
    assert tested == set(MASK_NAMES)


@pytest.mark.parametrize("lam", [1.0, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_equation(name, lam):
    for seed in (3, 8):
        tokens = random_tokens(seed, 19)
        student, old, new, labels, sequences = tokens
        _, terms = evaluate(Objective(mask=resolve_mask(name), compatibility_weight=lam), *tokens)
        weights = reference.weights_of(name, student, old, new, labels, sequences)
        one_sided = ("dissonance", "always_new", "focal", "focal(0.5, 2)", "mean", "mean(0.65)")
        assert name in one_sided or 0 < weights[:, 0].mean() < 1, "the example must exercise both sides"
        np.testing.assert_allclose(terms.weight_old, weights[:, 0], rtol=1e-12)
        a_1 = np.array([reference.kl(z, c, 2.0) for z, c in zip(old, student, strict=True)])
        a_2 = np.array([reference.kl(z, c, 2.0) for z, c in zip(new, student, strict=True)])
        ce = cross_entropy(student, labels)
        expected = lam * (weights * np.stack([a_1, a_2, ce], axis=1)).sum(axis=1) + (1 - lam) * ce
        np.testing.assert_allclose(terms.loss.detach(), expected, rtol=1e-10)


def test_a_share_is_not_rounded_where_no_logits_say_how_finely():
    labels = torch.zeros(3, dtype=torch.int64)
    weight = resolve_mask("mean(0.65)")(None, None, None, labels, labels)
    assert weight.tolist() == [[0.65, 1 - 0.65, 0.0]] * 3


@pytest.mark.parametrize("share", [0.5, 0.65])
def test_a_mixture_pulls_to_the_mean_of_probabilities(share):
    """Its gradient is that of one KL, to w p_1 + (1 - w) p_2."""
    student, old, new, labels, sequences = random_tokens(3, 11)
    leaf, terms = evaluate(Objective(mask=resolve_mask(f"mean({share})")), student, old, new, labels, sequences)
    terms.loss.sum().backward()
    mixed = share * torch.softmax(torch.tensor(old) / 2, -1) + (1 - share) * torch.softmax(torch.tensor(new) / 2, -1)
    own = torch.tensor(student, requires_grad=True)
    (mixed * (mixed.log() - torch.log_softmax(own / 2, -1))).sum().backward()
    torch.testing.assert_close(leaf.grad, own.grad, rtol=1e-6, atol=1e-8)


def test_blended_logits_are_one_target():
    student, old, new, labels, sequences = random_tokens(4, 11)
    objective = Objective(mask=resolve_mask("mean(0.25)"), blend="logits")
    _, terms = evaluate(objective, student, old, new, labels, sequences)
    expected = kl_divergence(torch.tensor(0.25 * old + 0.75 * new), torch.tensor(student), 2.0)
    torch.testing.assert_close(terms.loss.detach(), expected)
    _, one = evaluate(Objective(mask=resolve_mask("old_right"), blend="logits"), student, old, new, labels, sequences)
    _, other = evaluate(Objective(mask=resolve_mask("old_right")), student, old, new, labels, sequences)
    assert torch.equal(one.loss, other.loss), "where one teacher is followed there is nothing to blend"


def test_logit_difference_compares_what_the_teacher_finds_likeliest():
    random = np.random.default_rng(5)
    teacher, student = random.normal(size=(2, 6, 40))
    found = logit_difference(torch.tensor(teacher), torch.tensor(student))
    for row, (z_t, z_c) in enumerate(zip(teacher, student, strict=True)):
        top = np.argsort(-z_t)[:TOP_TOKENS]
        difference = np.log(reference.softmax(z_c)) - np.log(reference.softmax(z_t))
        assert found[row].item() == pytest.approx((difference[top] ** 2).sum())
    shifted = logit_difference(torch.tensor(teacher + 3), torch.tensor(student - 1))
    torch.testing.assert_close(shifted, found, msg="a constant in the logits says something")


@pytest.mark.parametrize("mask", ["student_wrong", "dissonance", "label_likelihood"])
def test_rows_without_labels_follow_the_transfer_mask_and_know_no_labels(mask):
    student, old, new, labels, sequences = random_tokens(6, 30)
    labelled = sequences != 1
    objective = Objective(
        mask=resolve_mask(mask), transfer_mask=resolve_mask("mean(0.7)"), compatibility_weight=0.4, label_smoothing=0.1
    )

    def terms_with(right):
        leaf = torch.tensor(student, requires_grad=True)
        parts = [torch.tensor(part) for part in (old, new, right, sequences)]
        terms = objective(leaf, *parts, torch.tensor(labelled))
        terms.loss.sum().backward()
        return terms, leaf.grad

    assert 0 < labelled.sum() < len(labelled)
    terms, gradient = terms_with(labels)
    others = np.where(labelled, labels, (labels + 1) % student.shape[1])
    again, same = terms_with(others)
    assert torch.equal(gradient, same) and torch.equal(terms.loss, again.loss), "a label was looked at"
    assert terms.labelled.tolist() == labelled.astype(float).tolist()
    assert not terms.cross_entropy[~torch.tensor(labelled)].any()
    a_1 = np.array([reference.kl(z, c, 2.0) for z, c in zip(old, student, strict=True)])
    a_2 = np.array([reference.kl(z, c, 2.0) for z, c in zip(new, student, strict=True)])
    expected = 0.4 * (0.7 * a_1 + 0.3 * a_2)
    np.testing.assert_allclose(terms.loss.detach()[~labelled], expected[~labelled], rtol=1e-6)
    _, alone = evaluate(objective, student, old, new, labels, sequences)
    torch.testing.assert_close(alone.loss[torch.tensor(labelled)], terms.loss[torch.tensor(labelled)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transfer_mask": "student_wrong"}, "looks at the labels that transfer rows do not have"),
        ({"transfer_mask": "label_likelihood"}, "choose one of always_old"),
        ({"divergence": "jsd"}, "divergence is 'jsd'; choose one of kl"),
        ({"blend": "geometric"}, "blend is 'geometric'; choose one of probabilities"),
        ({"mask": "mean(2)"}, r"in \[0, 1\]"),
        ({"mask": "mean(a)"}, "takes numbers"),
        ({"mask": "mean(0.1, 0.2)"}, "takes numbers"),
        ({"mask": "student_wrong(1)"}, "unknown mask"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(MuscleError, match=message):
        Objective(**{key: resolve_mask(value) if "mask" in key else value for key, value in settings.items()})
