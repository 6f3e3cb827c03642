"""Sample logs of lm-evaluation-harness (``--log_samples``): one row per item *and filter*."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from muscle_hf.compare.answers import answer_key, as_number, directed
from muscle_hf.compare.table import Detail, Row, hash_key
from muscle_hf.errors import MuscleError

# The harness's name for answers that went through no filter.
_NO_FILTER = "none"
_SIGNS = {"doc_id", "doc", "filtered_resps", "metrics"}
# The metric that is compared if none is asked for: the first of these that the task has, else its first one.
_PREFERRED = ("exact_match", "acc", "em", "pass@1")
_GRADED = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "pass@1"}


def base_task(name: str) -> str:
    """The task's name without the filter that tables of filtered answers carry: "gsm8k (strict-match)" -> "gsm8k"."""
    return name.partition(" (")[0]


class LmEvalFormat:
    """Rows of one ``samples_<task>_<time>.jsonl``.

    Args:
        task: Name of the task, from the file's name.
        metric: Metric to compare; by default exact_match, acc, or the task's first.
        filter: Keep only the rows of this filter; by default every filter is a table of its own.
        lower_is_better: Whether lower scores are better; None if only names can tell.
    """

    name = "lm-eval"

    def __init__(self, task: str, metric: str | None, filter: str | None, lower_is_better: bool | None = None) -> None:
        self.task, self.metric, self.filter, self.lower_is_better = task, metric, filter, lower_is_better
        self._metric: dict[tuple[str, ...], str] = {}

    @staticmethod
    def recognises(row: Mapping[str, Any]) -> bool:
        """Whether a row is of this format."""
        return row.keys() >= _SIGNS

    def extract(self, row: Mapping[str, Any]) -> Row | None:
        """What counts in a row; None for a row of another filter."""
        name = row.get("filter", _NO_FILTER)
        if self.filter is not None and name != self.filter:
            return None
        metric = self._chosen_metric(row)
        value = row[metric]
        if value is None or isinstance(value, (int, float)):
            value = as_number(value, metric)
        else:
            raise MuscleError(
                f"metric {metric!r} has no number per item ({str(value)[:60]!r}); choose another with --metric: "
                f"{', '.join(row['metrics'])}"
            )
        answer, choice = self._answer(row)
        doc, graded = row["doc"], metric in _GRADED
        if not graded:
            metric, value = directed(metric, value, self.lower_is_better)
        return Row(
            self.task if name == _NO_FILTER else f"{self.task} ({name})",
            str(row["doc_id"]),
            value,
            True if graded else None,
            None if answer is None else answer_key(answer),
            (hash_key(row.get("doc_hash")) ^ hash_key(row.get("target_hash"))) or 1,
            hash_key(row.get("prompt_hash")),
            metric,
            choice,
            {key: entry for key, entry in doc.items() if entry.__class__ in (str, int, float, bool)}
            if doc.__class__ is dict
            else None,
        )

    def _chosen_metric(self, row: Mapping[str, Any]) -> str:
        present = tuple(row["metrics"])
        chosen = self._metric.get(present)
        if chosen is None:
            chosen = self.metric or next(
                (name for name in _PREFERRED if name in present), present[0] if present else ""
            )
            if chosen not in present:
                raise MuscleError(
                    f"task {self.task!r} has no metric {chosen!r} here; it has {', '.join(present) or 'none'}. "
                    "Choose one that it has with --metric, or leave the task out with --task"
                )
            self._metric[present] = chosen
        return chosen

    def _answer(self, row: Mapping[str, Any]) -> tuple[Any, bool]:
        """The chosen index (the log does not store it: highest log-likelihood) or the text; whether it is a choice."""
        responses = row["filtered_resps"]
        likelihoods = _log_likelihoods(responses)
        if likelihoods is None:
            first = responses[0] if responses else None
            return (first if first.__class__ is str else None if first is None else json.dumps(first)), False
        if len(likelihoods) < 2:
            return None, False
        arguments = list((row.get("arguments") or {}).values())
        choices = _number_of_choices(row, likelihoods)
        scores = likelihoods[:choices]
        if self._chosen_metric(row) in ("acc_norm", "acc_bytes") and len(arguments) >= choices:
            # The harness divides by the length of the choice without the delimiter before it.
            texts = [str(argument.get("arg_1", "")) for argument in arguments[:choices]]
            texts = [text[1:] if text[:1] == " " else text for text in texts]
            sizes = [len(t.encode()) if self._chosen_metric(row) == "acc_bytes" else len(t) for t in texts]
            if all(sizes):
                scores = [score / size for score, size in zip(scores, sizes, strict=True)]
        return max(range(choices), key=scores.__getitem__), True

    def detail(self, row: Mapping[str, Any]) -> Detail:
        """The texts of a row."""
        arguments = list((row.get("arguments") or {}).values())
        answer, choice = self._answer(row)
        likelihoods = _log_likelihoods(row["filtered_resps"]) if choice else []
        number = _number_of_choices(row, likelihoods) if choice else 0
        choices = [str(argument.get("arg_1", "")).strip() for argument in arguments[:number]]
        target = str(row.get("target", ""))
        indices = _indices(target, choices) if choice else []
        prompt = arguments[0].get("arg_0") if arguments else None
        doc = row["doc"] if isinstance(row["doc"], dict) else {}
        return Detail(
            prompt=prompt if isinstance(prompt, str) else None if prompt is None else json.dumps(prompt),
            target=" | ".join(choices[i] for i in indices if i < len(choices)) or target,
            answer=choices[answer] if choice and answer < len(choices) else None if answer is None else str(answer),
            choices=choices,
            target_indices=indices,
            log_likelihoods=likelihoods[:number],
            columns={key: entry for key, entry in doc.items() if isinstance(entry, (str, int, float, bool))},
        )


def _log_likelihoods(responses: Any) -> list[float] | None:
    """The log-likelihoods of all requests; None if the responses are texts."""
    if not responses or any(entry.__class__ is not list or len(entry) != 2 for entry in responses):
        return None
    try:
        return [float(value) for value, _ in responses] if responses[0][1] in _FLAGS else None
    except (ValueError, TypeError):
        return None


_FLAGS = ("True", "False", True, False)


def _number_of_choices(row: Mapping[str, Any], likelihoods: list[float]) -> int:
    halved = "acc_mutual_info" in row["metrics"] and len(likelihoods) % 2 == 0
    return len(likelihoods) // 2 if halved else len(likelihoods)  # the second half are the unconditional ones


def _indices(target: str, choices: list[str]) -> list[int]:
    """The right choices: the log has the target as text, an index or a list of them, or what a choice says.

    Digits are an index, as in the harness, even where choices are numbers.
    """
    text = target.strip()
    if text in choices and not text.isdigit():
        return [choices.index(text)]
    try:
        value = ast.literal_eval(target)
    except (ValueError, SyntaxError):
        return []
    values = value if isinstance(value, (list, tuple)) else [value]
    return [entry for entry in values if isinstance(entry, int) and entry >= 0]
