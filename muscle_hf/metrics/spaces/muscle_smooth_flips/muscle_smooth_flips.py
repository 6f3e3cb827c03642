"""Gains and regressions of generated text when a model is updated, as an ``evaluate`` module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import evaluate

from muscle_hf.metrics.similarity import SIMILARITIES, score_texts
from muscle_hf.metrics.smooth import smooth_flip_metrics
from muscle_hf.metrics.spaces import CITATION

_DESCRIPTION = """\
Measures an update of a model that writes text: how often and how far its answers move closer to the references or away
from them, by ROUGE, BLEU, chrF, exact match, BERTScore with a local model, or a similarity of your own.
"""

_INPUTS = """
Args:
    predictions: The new model's texts.
    old_predictions: The old model's texts for the same items in the same order.
    references: The reference text of each item; or, for every item, a list of reference texts.
    compat_predictions: Texts of a third model (optional).
    similarity: A function (prediction, references) -> float in place of the configuration's; higher is better.
    epsilon: Changes of at most this size count as none; 0 by default.
    similarity_options: Options of the similarity, for example {"use_stemmer": True}.
The configuration names the similarity: evaluate.load("muscle_smooth_flips", "rougeL"); ROUGE-1 by default.
Returns:
    `items`, `score_old`, `score_new` (means), `improved`, `regressed` (counts), `pfr_smooth`, `nfr_smooth` (shares),
    `m_g`, `m_r` (mean size of a gain and of a regression). With a third model also `..._c` and `delta_..._c`.
Examples:
    >>> smooth = evaluate.load("muscle_smooth_flips")
    >>> m = smooth.compute(old_predictions=["a b"], predictions=["a"], references=["a b"])
    >>> m["nfr_smooth"]
    1.0
"""


class MuscleSmoothFlips(evaluate.Metric):
    """See the module's description; the configuration is the name of the similarity."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("default", *SIMILARITIES):
            raise ValueError(f"unknown similarity {self.config_name!r}; there are {', '.join(SIMILARITIES)}")
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": text, "old_predictions": text, "references": references})
                for references in (text, datasets.List(text))
            ],
        )

    def _compute(
        self,
        predictions: list[str],
        old_predictions: list[str],
        references: list[Any],
        compat_predictions: list[str] | None = None,
        similarity: str | Callable[..., float] | None = None,
        epsilon: float = 0.0,
        similarity_options: dict[str, Any] | None = None,
    ) -> dict[str, float]:
        chosen = similarity or ("rouge1" if self.config_name == "default" else self.config_name)

        def scores(texts: list[str]) -> Any:
            return score_texts(texts, references, chosen, **(similarity_options or {}))

        return smooth_flip_metrics(
            scores(old_predictions),
            scores(predictions),
            compat_scores=None if compat_predictions is None else scores(compat_predictions),
            epsilon=epsilon,
        )
