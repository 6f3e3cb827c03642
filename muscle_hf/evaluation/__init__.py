"""Run a model on a task, and keep what it answered as predictions."""

from __future__ import annotations

from muscle_hf.lazy import lazy_exports

# Resolved at first use, so that reading predictions needs no torch.
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "HarnessModel": "harness",
        "Item": "tasks",
        "Prediction": "predictions",
        "Server": ".served.server",
        "Source": "tasks",
        "Task": "tasks",
        "Vllm": "in_vllm",
        "builtin_tasks": "registry",
        "choice_log_likelihoods": "engine",
        "encode_pair": ".encoding",
        "encode_pairs": ".encoding",
        "evaluate_task": "engine",
        "evaluate_task_on_server": "server",
        "item_hash": "predictions",
        "iter_predictions": "predictions",
        "load_items": "registry",
        "load_rows": "registry",
        "load_sides": "harness",
        "load_task": "registry",
        "read_predictions": "predictions",
        "run_harness": "harness",
        "write_predictions": "predictions",
    },
)
