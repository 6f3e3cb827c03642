"""What the models of a cell answered to its test items, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from study import Cell

from muscle_hf.compare.targets import probabilities_of
from muscle_hf.evaluation import Prediction, read_predictions
from muscle_hf.metrics import flip_metrics, flip_metrics_from_correct, inherited_errors, smooth_flip_metrics

V1, V2, BOTH = "v1", "v2", "both at inference"
FIGURES = ("acc_new", "nfr", "relative_nfr", "nfr_mc", "pfr", "return_rate", "inheritance_rate")


@dataclass(eq=False)
class Answers:
    """The answers of one seed of a cell.

    Args:
        quality: Of each answer of each model, (items,) float64: 1 for right, 0 for wrong, or the similarity.
        choice: What each model chose, (items,) int64; none where answers are generated.
        right: The right choices, (items,) int64, or none.
        scored: Whether the quality is a similarity.
        items: Hash of what was asked.
        training: How each model was trained.
    """

    quality: dict[str, np.ndarray] = field(default_factory=dict)
    choice: dict[str, np.ndarray] = field(default_factory=dict)
    right: np.ndarray | None = None
    scored: bool = False
    items: str = ""
    training: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, rows: Sequence[Prediction]) -> None:
        """The answers of a model."""
        self.scored = rows[0].correct is None
        self.quality[name] = np.array([row.score if self.scored else row.correct for row in rows], dtype=float)
        if rows[0].log_likelihoods is not None:
            self.choice[name] = np.array([row.prediction for row in rows])
            self.right = np.array([row.target for row in rows])

    def choose(self, name: str, choice: np.ndarray) -> None:
        """The answers of a rule that chooses, (items,) int64."""
        self.choice[name] = choice
        self.quality[name] = (choice == self.right).astype(float)

    def worse(self, name: str) -> np.ndarray:
        """Which items a model answers worse than v1 (for right and wrong: negative flips), (items,) bool."""
        return self.quality[name] < self.quality[V1]

    def inherited(self, name: str) -> dict[str, float]:
        """How many of the errors of v1 that v2 had shed a model makes again, of tasks with choices."""
        answers = {"old_predictions": self.choice[V1], "compat_predictions": self.choice[name]}
        sides = (self.quality[side] > 0 for side in (V1, V2, name))
        return inherited_errors(*sides, **answers).to_dict()

    def figures(self, name: str) -> dict[str, float]:
        """Accuracy (or mean similarity), NFR and so on of a model, as fractions; what is not defined is missing."""
        if self.choice:
            flips = flip_metrics(self.choice[V1], self.choice[name], self.right)
            return flips | self.inherited(name)
        if not self.scored:
            return flip_metrics_from_correct(self.quality[V1] > 0, self.quality[name] > 0)
        smooth = smooth_flip_metrics(self.quality[V1], self.quality[name])
        means = {"acc_old": float(self.quality[V1].mean()), "acc_new": float(self.quality[name].mean())}
        return {**means, "nfr": smooth["nfr_smooth"], "pfr": smooth["pfr_smooth"]}


def probabilities(rows: Sequence[Prediction]) -> np.ndarray:
    """Of each choice of each item, from the likelihoods, (items, choices) float64."""
    return probabilities_of([row.log_likelihoods for row in rows])


def both_at_inference(versions: Sequence[Sequence[Prediction]]) -> np.ndarray:
    """What the mean of the models' probabilities chooses, (items,) int64."""
    return sum(probabilities(rows) for rows in versions).argmax(axis=1)


def read_versions(cell: Cell) -> tuple[list[Prediction], list[Prediction]] | None:
    """The test answers of v1 and v2; None where they are not there yet."""
    files = [cell.answers_file(cell.version_folder(side), "test") for side in ("old", "new")]
    if not all(file.is_file() for file in files):
        return None
    old, new = (read_predictions(file) for file in files)
    return old, new
