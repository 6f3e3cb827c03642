"""The objective written out from the equations of the paper in float64 NumPy; shares no code with the package."""

from __future__ import annotations

import numpy as np

MASK_NAMES = ("student_wrong", "old_right", "always_old", "old_likelier", "old_likelier_sequence")


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def kl(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    """a_1 and a_2: KL( sigma(z_teacher / T) || sigma(z_C / T) )."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return float(sum(p_v * (np.log(p_v) - np.log(q_v)) for p_v, q_v in zip(p, q, strict=True)))


def mask_of(name: str, student: np.ndarray, old: np.ndarray, labels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    """m_i of equation (1) and of the ablation (section 6.5), for every token."""
    tokens = range(len(labels))
    advantage = [np.log(softmax(old[i])[labels[i]]) - np.log(softmax(student[i])[labels[i]]) for i in tokens]
    by_name = {
        "student_wrong": lambda i: np.argmax(student[i]) != labels[i],
        "old_right": lambda i: np.argmax(old[i]) == labels[i],
        "always_old": lambda i: True,
        "old_likelier": lambda i: advantage[i] > 0,
        "old_likelier_sequence": lambda i: sum(advantage[j] for j in tokens if sequences[j] == sequences[i]) > 0,
    }
    return np.array([float(by_name[name](i)) for i in tokens])


def loss(
    student: np.ndarray,
    old: np.ndarray,
    new: np.ndarray,
    labels: np.ndarray,
    weight_old: np.ndarray,
    *,
    temperature: float = 2.0,
    lam: float = 1.0,
    squared: bool = False,
    smoothing: float = 0.0,
) -> float:
    """Equation (5) with (1), as a sum over the tokens: divide by n for the loss.

    Args:
        student: z_C, (N, V); old: z_v1; new: z_v2.
        labels: y, (N,).
        weight_old: m, (N,).
    """
    total = 0.0
    for z_c, z_1, z_2, y, m in zip(student, old, new, labels, weight_old, strict=True):
        compatibility = m * kl(z_1, z_c, temperature) + (1 - m) * kl(z_2, z_c, temperature)
        log_p = np.log(softmax(z_c))
        cross_entropy = -(1 - smoothing) * log_p[y] - smoothing * log_p.mean()
        total += lam * compatibility * (temperature**2 if squared else 1) + (1 - lam) * cross_entropy
    return total


def trained(logits: np.ndarray, labels: np.ndarray, *, shift: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels and sequence of every trained token of a batch.

    Args:
        logits: (B, L, V), or (B, C) with labels (B,).
        labels: -100 where nothing is trained.
        shift: Whether the logits at i predict the label at i + 1.
    """
    found = []
    for sequence, row in enumerate(np.atleast_2d(labels.T).T):
        for position, label in enumerate(row):
            if label != -100 and not (shift and position == 0):
                token = logits[sequence] if logits.ndim == 2 else logits[sequence, position - int(shift)]
                found.append((token, label, sequence))
    columns = zip(*found, strict=True)
    return tuple(np.array(column) for column in columns)


def weights_of(
    name: str, student: np.ndarray, old: np.ndarray, new: np.ndarray, labels: np.ndarray, sequences: np.ndarray
) -> np.ndarray:
    """Weights of KL(old), KL(new) and the label's cross-entropy for the masks beyond the paper's, (N, 3)."""
    tokens = range(len(labels))

    def log_p(logits: np.ndarray, i: int) -> float:
        return float(np.log(softmax(logits[i])[labels[i]]))

    def mixture(share: float) -> tuple[float, float, float]:
        return float(share), 1 - float(share), 0.0

    def mean_over_sequence(of_token, i: int) -> float:
        return float(np.mean([of_token(j) for j in tokens if sequences[j] == sequences[i]]))

    def confidence(i: int) -> float:
        return float(np.log(softmax(old[i]).max()) - np.log(softmax(new[i]).max()))

    def old_right(i: int) -> float:
        return float(np.argmax(old[i]) == labels[i])

    rules = {
        "old_right_student_wrong": lambda i: mixture(old_right(i) and np.argmax(student[i]) != labels[i]),
        "dissonance": lambda i: (0.0, 0.0, old_right(i)),
        "label_likelihood": lambda i: mixture(
            softmax(old[i])[labels[i]] / (softmax(old[i])[labels[i]] + softmax(new[i])[labels[i]])
        ),
        "sequence_likelihood": lambda i: mixture(
            1 / (1 + np.exp(-mean_over_sequence(lambda j: log_p(old, j) - log_p(new, j), i)))
        ),
        "always_new": lambda i: mixture(0),
        "more_confident": lambda i: mixture(confidence(i) > 0),
        "more_confident_sequence": lambda i: mixture(mean_over_sequence(confidence, i) > 0),
        "focal": lambda i: (1 + 5 * old_right(i), 0.0, 0.0),
        "focal(0.5, 2)": lambda i: (0.5 + 2 * old_right(i), 0.0, 0.0),
        "margin(0.4)": lambda i: mixture(log_p(old, i) - log_p(student, i) > 0.4),
        "mean": lambda i: mixture(0.5),
        "mean(0.65)": lambda i: mixture(0.65),
    }
    return np.array([rules[name](i) for i in tokens])


def whole_answer(old: float, own: float, temperature: float) -> float:
    """(X4): a_1 of an answer, from its log-likelihood under v1 and under the student."""
    p, q = (np.exp(min(value, -1e-4) / temperature) for value in (old, own))
    return float(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def loss_of_answers(
    student: np.ndarray,
    old: dict[int, float],
    new: np.ndarray,
    tokens: np.ndarray,
    answers: np.ndarray,
    weight_old: np.ndarray,
    temperature: float = 2.0,
) -> float:
    """(1) with a_1 of whole answers, as a sum over the tokens; what is in no answer follows v2.

    Args:
        student: z_C, (N, V); new: z_v2.
        old: l_1 by answer.
        tokens: The row's own, (N,).
        answers: The answer of each token, (N,); -1 for none.
        weight_old: m, (N,).
    """
    total = 0.0
    for number, log_likelihood in old.items():
        those = np.flatnonzero(answers == number)
        if len(those):
            own = sum(float(np.log(softmax(student[i])[tokens[i]])) for i in those)
            total += weight_old[those].mean() * whole_answer(log_likelihood, own, temperature)
    for i in range(len(tokens)):
        w = weight_old[i] if answers[i] in old else 0.0
        total += (1 - w) * kl(new[i], student[i], temperature)
    return total


def choice_targets(
    choices: list[tuple[int, ...]], shares: np.ndarray, path: tuple[int, ...], width: int
) -> np.ndarray:
    """(X3) by counting: q_i(u) for each token of a path, (n, width)."""
    found = np.zeros((len(path), width))
    for i in range(len(path)):
        begun = [c for c, tokens in enumerate(choices) if tokens[:i] == path[:i]]
        for u in range(width):
            going_on = [c for c in begun if tokens_at(choices[c], i) == u]
            found[i, u] = sum(shares[c] for c in going_on) / sum(shares[c] for c in begun)
    return found


def tokens_at(choice: tuple[int, ...], place: int) -> int | None:
    return choice[place] if place < len(choice) else None
