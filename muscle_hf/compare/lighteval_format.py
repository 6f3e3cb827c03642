"""Details of lighteval: one Parquet file per task with the columns ``doc``, ``metric`` and ``model_response``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muscle_hf.compare.answers import answer_key, as_number, directed
from muscle_hf.compare.table import Detail, Row, text_key
from muscle_hf.errors import MuscleError

_PREFERRED = ("exact_match", "em", "acc", "extractive_match")
_GRADED_STARTS = ("acc", "em", "exact_match", "extractive_match", "pass@", "loglikelihood_acc", "qem", "pem")


class LightevalFormat:
    """Rows of one ``details_<task>_<time>.parquet``; older versions put underscores around the column names.

    Args:
        task: Name of the task, from the file's name.
        metric: Metric to compare; by default the exact match or accuracy, or the task's first.
        lower_is_better: Whether lower scores are better; None if only names can tell.
    """

    name = "lighteval"

    def __init__(self, task: str, metric: str | None, lower_is_better: bool | None = None) -> None:
        self.task, self.metric, self.lower_is_better = task, metric, lower_is_better
        self.number = -1

    @staticmethod
    def recognises(row: Mapping[str, Any]) -> bool:
        """Whether a row is of this format."""
        return {name.strip("_") for name in row} >= {"doc", "metric", "model_response"}

    def extract(self, row: Mapping[str, Any]) -> Row:
        """What counts in a row."""
        doc, metrics, response = _parts(row)
        self.number += 1
        metric = self._chosen_metric(metrics)
        value, graded = as_number(metrics[metric], metric), metric.startswith(_GRADED_STARTS)
        if not graded:
            metric, value = directed(metric, value, self.lower_is_better)
        likelihoods = _likelihoods(doc, response)
        text = _text(response)
        identity = doc.get("id")
        answer = max(range(len(likelihoods)), key=likelihoods.__getitem__) if likelihoods else text
        return Row(
            self.task,
            str(self.number if identity in (None, "") else identity),
            value,
            True if graded else None,
            None if answer is None else answer_key(answer),
            text_key(repr((doc.get("query"), doc.get("choices"), sorted(_gold(doc))))) or 1,
            text_key(repr(response.get("input"))) if response.get("input") is not None else 0,
            metric,
            bool(likelihoods),
            {k: v for k, v in (doc.get("specific") or {}).items() if isinstance(v, (str, int, float, bool))},
        )

    def _chosen_metric(self, metrics: Mapping[str, Any]) -> str:
        numbers = [name for name, value in metrics.items() if isinstance(value, (int, float))]
        chosen = self.metric or next((name for name in _PREFERRED if name in numbers), numbers[0] if numbers else "")
        if chosen not in numbers:
            raise MuscleError(
                f"task {self.task!r} has no number for the metric {chosen!r}; it has {', '.join(numbers) or 'none'}. "
                "Choose one that every side has with --metric"
            )
        return chosen

    def detail(self, row: Mapping[str, Any]) -> Detail:
        """The texts of a row."""
        doc, _, response = _parts(row)
        indices = _gold(doc)
        choices = [str(choice) for choice in doc.get("choices") or []]
        likelihoods = _likelihoods(doc, response)
        best = max(range(len(likelihoods)), key=likelihoods.__getitem__) if likelihoods else None
        return Detail(
            prompt=doc.get("query"),
            target=" | ".join(choices[i] for i in indices if 0 <= i < len(choices)),
            answer=_text(response) if best is None else choices[best],
            choices=choices if likelihoods else [],
            target_indices=indices if likelihoods else [],
            log_likelihoods=likelihoods,
            columns=doc.get("specific") or {},
        )


def _parts(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    plain = {name.strip("_"): value for name, value in row.items()}
    parts = tuple(plain.get(name) for name in ("doc", "metric", "model_response"))
    if not all(isinstance(part, dict) for part in parts):
        raise MuscleError("doc, metric and model_response must be structures, as lighteval writes its details")
    return parts  # type: ignore[return-value]


def _gold(doc: Mapping[str, Any]) -> list[int]:
    """The right choices."""
    gold = doc.get("gold_index")
    return [entry for entry in (gold if isinstance(gold, (list, tuple)) else [gold]) if isinstance(entry, int)]


def _likelihoods(doc: Mapping[str, Any], response: Mapping[str, Any]) -> list[float]:
    """One log-probability per choice; empty for generated answers."""
    values = list(response.get("logprobs") or [])
    choices = doc.get("choices") or []
    return [float(value) for value in values] if len(values) == len(choices) > 1 else []


def _text(response: Mapping[str, Any]) -> str | None:
    texts = response.get("text_post_processed") or response.get("text") or []
    return str(texts[0]) if len(texts) else None
