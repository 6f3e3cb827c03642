"""Details of lighteval: one Parquet file per task with the columns ``doc``, ``metric`` and ``model_response``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muscle_hf.compare.table import choose_metric, likeliest, text_key
from muscle_hf.errors import MuscleError

_GRADED_STARTS = ("acc", "em", "exact_match", "extractive_match", "pass@", "loglikelihood_acc", "qem", "pem")


class Rows:
    """Rows of one ``details_<task>_<time>.parquet`` by roles; older versions put underscores around the names."""

    def __init__(self, task: str, metric: str | None, filter: str | None = None) -> None:
        self.task, self.metric, self.number = task, metric, -1

    def __call__(self, row: Mapping[str, Any], texts: bool) -> dict[str, Any]:
        """One row, as in :class:`muscle_hf.compare.lm_eval_format.Rows`."""
        plain = {name.strip("_"): value for name, value in row.items()}
        doc, metrics, response = (plain.get(name) for name in ("doc", "metric", "model_response"))
        if not isinstance(doc, dict) or not isinstance(metrics, dict) or not isinstance(response, dict):
            raise MuscleError("doc, metric and model_response must be structures, as lighteval writes its details")
        self.number += 1
        numbers = [name for name, value in metrics.items() if value is None or isinstance(value, (int, float))]
        metric = choose_metric(numbers, self.metric, self.task)
        choices, gold = list(doc.get("choices") or []), doc.get("gold_index")
        values = list(response.get("logprobs") or [])
        likelihoods = [float(value) for value in values] if len(values) == len(choices) > 1 else None
        generated = response.get("text_post_processed") or response.get("text") or []
        targets = [entry for entry in (gold if isinstance(gold, (list, tuple)) else [gold]) if isinstance(entry, int)]
        result = {
            "task": self.task,
            "id": self.number if doc.get("id") in (None, "") else doc["id"],
            "correct" if metric.startswith(_GRADED_STARTS) else "score": metrics[metric],
            "metric": metric,
            "prediction": likeliest(likelihoods) if likelihoods else str(generated[0]) if len(generated) else None,
            "hash": text_key(repr((doc.get("query"), choices, sorted(targets)))),
            "prompt_hash": text_key(repr(response["input"])) if response.get("input") is not None else None,
            "log_likelihoods": likelihoods,
            "columns": {
                k: v for k, v in (doc.get("specific") or {}).items() if isinstance(v, (str, int, float, bool))
            },
        }
        if texts:
            known = [i for i in targets if 0 <= i < len(choices)]
            result |= {"prompt": doc.get("query"), "target": known if likelihoods else [choices[i] for i in known]}
            result |= {"choices": [str(choice) for choice in choices]} if likelihoods else {}
        return result
