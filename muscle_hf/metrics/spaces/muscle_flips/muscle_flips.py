"""Flips between right and wrong when a model is updated, as an ``evaluate`` module."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from muscle_hf.metrics.flips import flip_metrics
from muscle_hf.metrics.spaces import CITATION

_DESCRIPTION = """\
Counts what an update from an old to a new model breaks and what it mends: negative and positive flips, the four
quadrants, and the rates that follow from them. With a third model, a candidate for a compatible update, its rates and
their differences to the plain update come along.
"""

_INPUTS = """
Args:
    predictions: The new model's answers: indices of choices or classes, or strings.
    old_predictions: The old model's answers to the same items in the same order.
    references: The right answer of each item; or, for every item, a list of right answers.
    compat_predictions: Answers of a third model. An optional argument of `compute`; load the module with the
        configuration "compat" to make it an input of `add` and `add_batch` too.
    multiple_choice: Also count flips from one wrong answer to another (`nfr_mc`); true by default.
Returns:
    Counts (`items`, `both_right`, `positive_flips`, `both_wrong`, `negative_flips`) and fractions (`acc_old`,
    `acc_new`, `nfr`, `pfr`, `nfr_mc`, `btc`, `bec`, `nfi`, `relative_nfr`, `agreement`), nan where a denominator is
    empty. With a third model also the same with suffix `_c`, and `delta_..._c`.
Examples:
    >>> m = evaluate.load("muscle_flips").compute(old_predictions=[0, 1], predictions=[0, 0], references=[0, 1])
    >>> m["nfr"]
    0.5
"""


class MuscleFlips(evaluate.Metric):
    """See the module's description; configurations: ``default`` and ``compat``."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("default", "compat"):
            raise ValueError(f"unknown configuration {self.config_name!r}; there are 'default' and 'compat'")
        models = ["predictions", "old_predictions"] + ["compat_predictions"] * (self.config_name == "compat")
        features = []
        # Text first: an index never passes for text, but digits would pass for an index.
        for kind in ("string", "int64"):
            answer = datasets.Value(kind)
            for reference in (answer, datasets.List(answer)):
                features.append(datasets.Features({**dict.fromkeys(models, answer), "references": reference}))
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_INPUTS,
            features=features,
        )

    def _compute(
        self,
        predictions: list[Any],
        old_predictions: list[Any],
        references: list[Any],
        compat_predictions: list[Any] | None = None,
        multiple_choice: bool = True,
    ) -> dict[str, float]:
        return flip_metrics(
            old_predictions,
            predictions,
            references,
            compat_predictions=compat_predictions,
            multiple_choice=multiple_choice,
        )
