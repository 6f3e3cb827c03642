"""Sample logs of lm-evaluation-harness (``--log_samples``): one row per item *and filter*."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from muscle_hf.compare.answers import NotJudged
from muscle_hf.compare.table import choose_metric, hash_key, likeliest

# The harness's name for answers that went through no filter.
_NO_FILTER = "none"
_GRADED = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "pass@1"}
_FIELDS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
_FIELDS |= {"doc_hash", "prompt_hash", "target_hash"}
_FLAGS = ("True", "False", True, False)


def base_task(name: str) -> str:
    """The task's name without the filter that tables of filtered answers carry: "gsm8k (strict-match)" -> "gsm8k"."""
    return name.partition(" (")[0]


class Rows:
    """Rows of one ``samples_<task>_<time>.jsonl`` by roles.

    By default the metric is exact_match, acc or the task's first, and every filter is a table of its own.
    """

    def __init__(self, task: str, metric: str | None, filter: str | None) -> None:
        self.task, self.metric, self.filter = task, metric, filter
        self.filters: set[str] = set()
        self._chosen: dict[tuple[str, ...], str] = {}

    def __call__(self, row: Mapping[str, Any], texts: bool) -> dict[str, Any] | None:
        """One row, with the texts for readers where they are asked for; None for a row of another filter."""
        name = row.get("filter", _NO_FILTER)
        self.filters.add(name)
        if self.filter is not None and name != self.filter:
            return None
        metric = self._metric(row)
        value = row[metric]
        if isinstance(value, Mapping):  # lmms-eval keeps what its aggregation needs beside the item's score
            value = value.get("score", value)
        if value is not None and not isinstance(value, (int, float)):
            raise NotJudged(
                f"metric {metric!r} has no number per item ({str(value)[:60]!r}); choose another with --metric: "
                f"{', '.join(self._names(row))}"
            )
        answer, likelihoods = self._answer(row, metric)
        doc = row["doc"] if isinstance(row["doc"], dict) else {}
        result = {
            "task": self.task if name == _NO_FILTER else f"{self.task} ({name})",
            "id": row["doc_id"],
            "correct" if metric in _GRADED else "score": value,
            "metric": metric,
            "prediction": answer,
            "hash": hash_key(row.get("doc_hash")) ^ hash_key(row.get("target_hash")),
            "prompt_hash": row.get("prompt_hash"),
            "log_likelihoods": likelihoods,
            "columns": {key: entry for key, entry in doc.items() if entry.__class__ in (str, int, float, bool)},
        }
        return result | _texts(row, likelihoods) if texts else result

    def _names(self, row: Mapping[str, Any]) -> list[str]:
        """The metrics of a row: before 0.4.5 the log does not list them."""
        return row.get("metrics") or [name for name in row if name not in _FIELDS]

    def _metric(self, row: Mapping[str, Any]) -> str:
        names = tuple(self._names(row))
        if names not in self._chosen:
            self._chosen[names] = choose_metric(names, self.metric, self.task)
        return self._chosen[names]

    def _answer(self, row: Mapping[str, Any], metric: str) -> tuple[Any, list[float] | None]:
        """The answer (index of a choice: the log has only the log-likelihoods) and the choices' log-likelihoods."""
        responses = row["filtered_resps"]
        likelihoods = _log_likelihoods(responses)
        if likelihoods is None:
            return responses[0] if responses else None, None
        if len(likelihoods) < 2:
            return None, None
        if "acc_mutual_info" in self._names(row) and len(likelihoods) % 2 == 0:
            likelihoods = likelihoods[: len(likelihoods) // 2]  # the second half are the unconditional ones
        scores = likelihoods
        if metric in ("acc_norm", "acc_bytes"):
            # The harness divides by the length of the choice without the delimiter before it.
            texts = [text[1:] if text[:1] == " " else text for text in _choices(row, len(likelihoods))]
            sizes = [len(text.encode()) if metric == "acc_bytes" else len(text) for text in texts]
            if len(sizes) == len(scores) and all(sizes):
                scores = [score / size for score, size in zip(scores, sizes, strict=True)]
        return likeliest(scores), likelihoods


def _log_likelihoods(responses: Any) -> list[float] | None:
    """The log-likelihoods of all requests; None if the responses are texts."""
    if not responses or any(entry.__class__ is not list or len(entry) != 2 for entry in responses):
        return None
    try:
        return [float(value) for value, _ in responses] if responses[0][1] in _FLAGS else None
    except (ValueError, TypeError):
        return None


def _arguments(row: Mapping[str, Any]) -> list[Any]:
    """The arguments of each request: objects ``arg_0, arg_1`` or, before 0.4.4, lists."""
    arguments = row.get("arguments") or {}
    listed = list(arguments.values()) if isinstance(arguments, Mapping) else list(arguments)
    return [list(entry.values()) if isinstance(entry, Mapping) else entry for entry in listed]


def _choices(row: Mapping[str, Any], number: int) -> list[str]:
    return [str(entry[1]) if len(entry) > 1 else "" for entry in _arguments(row)[:number]]


def _texts(row: Mapping[str, Any], likelihoods: list[float] | None) -> dict[str, Any]:
    arguments, target = _arguments(row), row.get("target", "")
    prompt = arguments[0][0] if arguments and arguments[0] else None
    texts = {"prompt": prompt if isinstance(prompt, str) or prompt is None else json.dumps(prompt), "target": target}
    if likelihoods is None:
        return texts
    choices = [text.strip() for text in _choices(row, len(likelihoods))]
    indices = _indices(str(target), choices)
    return texts | {"choices": choices, "target": [i for i in indices if i < len(choices)] or target}


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
